package proxy

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testpki"
)

// Requests of many kinds run while the identities on both sides change.
func TestRotationUnderLoad(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv, cli, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	}))
	under := load(t, url)
	for range 25 {
		under.wait(40)
		cli.source.Rotate(ca.SVID(t, "/svc/web", time.Minute))
		srv.source.Rotate(ca.SVID(t, "/svc/orders", time.Minute))
	}
	under.stop()
	serials := map[string]bool{}
	for _, ev := range srv.rec.Events() {
		serials[string(ev.Input.Source.Serial)] = true
	}
	if len(serials) < 3 {
		t.Errorf("%d serials seen at the server, want 3 or more", len(serials))
	}
	t.Logf("%d requests, %d serials", under.done.Load(), len(serials))
}

func TestPolicySwapUnderLoad(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	under := load(t, url)
	for i := range uint64(100) {
		under.wait(5)
		srv.SetSnapshot(allowAll(i + 2))
	}
	under.stop()
	revisions := map[uint64]bool{}
	for _, ev := range srv.rec.Events() {
		revisions[ev.Decision.Revision.Number] = true
	}
	if len(revisions) < 20 {
		t.Errorf("%d revisions seen in the record", len(revisions))
	}
}

// traffic is clients that send requests until they are stopped, and fail the
// test for every one that fails.
type traffic struct {
	t      testing.TB
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   atomic.Int64
	ticks  chan struct{}
}

func load(t testing.TB, url string) *traffic {
	ctx, cancel := context.WithCancel(t.Context())
	l := &traffic{t: t, cancel: cancel, ticks: make(chan struct{}, 1)}
	client := newClient(t)
	for i := range 8 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				var body io.Reader
				method := "GET"
				if i%2 == 0 {
					method, body = "POST", strings.NewReader("body")
				}
				req, _ := http.NewRequest(method, url+"/load", body)
				res, err := client.Do(req)
				if err != nil {
					t.Errorf("request failed: %v", err)
					return
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 || body != nil && string(got) != "body" {
					t.Errorf("%d %q %v", res.StatusCode, got, err)
					return
				}
				l.done.Add(1)
				select {
				case l.ticks <- struct{}{}:
				default:
				}
			}
		})
	}
	return l
}

// wait returns after n more requests.
func (l *traffic) wait(n int64) {
	for until := l.done.Load() + n; l.done.Load() < until; {
		select {
		case <-l.ticks:
		case <-time.After(20 * time.Second):
			l.t.Fatal("requests stand still")
		}
	}
}

func (l *traffic) stop() {
	l.cancel()
	l.wg.Wait()
}

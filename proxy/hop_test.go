package proxy

import (
	"bufio"
	"context"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
)

func TestStripHop(t *testing.T) {
	for _, tc := range []struct {
		name, upgrade string
		in, want      http.Header
	}{
		{name: "nothing", in: http.Header{"A": {"1"}}, want: http.Header{"A": {"1"}}},
		{
			name: "listed and unlisted",
			in:   http.Header{"Connection": {"close, x-a", " ,X-B"}, "X-A": {"1"}, "X-B": {"2"}, "X-C": {"3"}, "Keep-Alive": {"4"}, "Proxy-Connection": {"5"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"T"}, "Proxy-Authenticate": {"6"}},
			want: http.Header{"X-C": {"3"}},
		},
		{name: "upgrade", in: http.Header{"Connection": {"keep-alive, UPGRADE"}, "Upgrade": {"websocket"}}, want: http.Header{}, upgrade: "websocket"},
		{name: "upgrade not in Connection", in: http.Header{"Upgrade": {"websocket"}}, want: http.Header{}},
		{name: "two upgrades", in: http.Header{"Connection": {"upgrade"}, "Upgrade": {"a", "b"}}, want: http.Header{}},
		{name: "TE trailers stays", in: http.Header{"Te": {"gzip, Trailers;q=1"}, "Connection": {"te"}}, want: http.Header{"Te": {"trailers"}}},
		{name: "TE without trailers goes", in: http.Header{"Te": {"gzip"}}, want: http.Header{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := stripHop(tc.in); got != tc.upgrade {
				t.Errorf("upgrade %q, want %q", got, tc.upgrade)
			}
			if diff := cmp.Diff(tc.want, tc.in); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Nothing that Connection lists, and nothing hop by hop, is left.
func FuzzStripHop(f *testing.F) {
	f.Add("Connection: close, x-a\r\nX-A: 1\r\nTE: trailers\r\n\r\n")
	f.Add("Connection: upgrade\r\nUpgrade: websocket\r\nConnection: ,,\r\n\r\n")
	f.Fuzz(func(t *testing.T, head string) {
		m, err := textproto.NewReader(bufio.NewReader(strings.NewReader(head))).ReadMIMEHeader()
		if err != nil {
			return
		}
		h := http.Header(m)
		listed := strings.Split(strings.Join(h["Connection"], ","), ",")
		upgrade := stripHop(h)
		if upgrade != "" && !hasToken([]string{strings.Join(listed, ",")}, "upgrade") {
			t.Fatalf("upgrade to %q was not in Connection", upgrade)
		}
		for _, name := range append(listed, hopHeaders[:]...) {
			name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
			if v, ok := h[name]; ok && (name != "Te" || !cmp.Equal(v, []string{"trailers"})) {
				t.Fatalf("%s: %q is left", name, v)
			}
		}
	})
}

func TestRefusalsAreBounded(t *testing.T) {
	rec := &peptest.Recorder{}
	e, err := pep.New(pep.Config{Service: "orders", ID: spiffeid.RequireFromString(serverID), Recorder: rec})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	r := newRefusals(e)
	r.now = func() time.Time { return now }
	refuse := func(n int) {
		for range n {
			r.record(&policy.Input{Layer: policy.LayerConnection, Direction: policy.Inbound}, "why")
		}
	}
	refuse(refusalsBurst + 70)
	if n := len(rec.Events()); n != refusalsBurst {
		t.Fatalf("%d events, want %d", n, refusalsBurst)
	}
	now = now.Add(time.Second)
	refuse(1)
	events := rec.Events()
	if last := events[len(events)-1].Reason; !strings.Contains(last, "and 70 more") {
		t.Errorf("reason %q does not count the others", last)
	}
	refuse(refusalsPerSecond)
	r.flush()
	events = rec.Events()
	if last := events[len(events)-1].Reason; !strings.HasPrefix(last, "1 connections") {
		t.Errorf("reason %q at the end", last)
	}
	r.flush()
	if n := len(rec.Events()); n != len(events) {
		t.Error("nothing was left to count")
	}
	// What could not be recorded is counted too.
	now = now.Add(time.Minute)
	rec.Fill(true)
	refuse(3)
	rec.Fill(false)
	refuse(1)
	events = rec.Events()
	if last := events[len(events)-1].Reason; !strings.Contains(last, "and 3 more") {
		t.Errorf("reason %q after the recorder came back", last)
	}
}

func TestInflight(t *testing.T) {
	var f inflight
	f.wait(t.Context())
	f.enter()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.wait(ctx)
	done := make(chan struct{})
	go func() { f.wait(t.Context()); close(done) }()
	f.leave()
	<-done
}

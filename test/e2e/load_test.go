package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load drives requests from several clients until it is stopped, and keeps
// what came of each.
type load struct {
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	attempts atomic.Int64
	mu       sync.Mutex
	// ids of the decisions that answered, in no order.
	ids []string
	// failed tells of each attempt that did not end in status 200.
	failed []string
	// status counts answers by status.
	status map[int]int
}

// startLoad posts to url from clients at once, each waiting pause between two
// requests. POST, so that no transport on the way repeats one by itself.
func startLoad(url string, clients int, pause time.Duration) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, status: map[int]int{}}
	for range clients {
		l.wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
			defer client.CloseIdleConnections()
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				l.one(client, url)
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
	return l
}

func (l *load) one(client *http.Client, url string) {
	l.attempts.Add(1)
	resp, err := client.Post(url, "text/plain", strings.NewReader("x"))
	if err != nil {
		l.fail(err.Error())
		return
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status[resp.StatusCode]++
	if id := resp.Header.Get("Writ-Decision-Id"); id != "" {
		l.ids = append(l.ids, id)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		l.failed = append(l.failed, resp.Status+" "+string(body))
	}
}

func (l *load) fail(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, why)
}

// stop ends the load and waits for every open request.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// ok is how many responses with status 200 came back so far.
func (l *load) ok() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status[http.StatusOK]
}

// allSucceeded fails the test when any request did not succeed.
func (l *load) allSucceeded(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(l.failed), l.attempts.Load(), l.failed[0])
	}
	if l.status[http.StatusOK] == 0 {
		t.Error("no request was answered: the test shows nothing")
	}
}

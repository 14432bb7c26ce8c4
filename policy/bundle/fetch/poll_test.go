package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/fetch"
)

// bundleServer serves one bundle as OPA's bundle API wants it.
type bundleServer struct {
	*httptest.Server
	mu      sync.Mutex
	data    []byte
	status  int
	tagless bool
	changed chan struct{}
	// asked has an entry per request: its If-None-Match and Prefer.
	asked chan string
}

func newBundleServer(t *testing.T, longPoll bool) *bundleServer {
	s := &bundleServer{changed: make(chan struct{}), asked: make(chan string, 10000), status: http.StatusOK}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked <- fmt.Sprintf("%s %s", r.Header.Get("If-None-Match"), r.Header.Get("Prefer"))
		data, etag, status, changed := s.now()
		if etag != "" && r.Header.Get("If-None-Match") == etag {
			if !longPoll {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
			data, etag, status, _ = s.now()
		}
		if longPoll {
			w.Header().Set("Content-Type", "application/vnd.openpolicyagent.bundles")
		}
		if etag != "" {
			w.Header().Set("ETag", etag)
		}
		w.WriteHeader(status)
		w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *bundleServer) now() (data []byte, etag string, status int, changed chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tagless && s.status == http.StatusOK {
		etag = fmt.Sprintf(`"%x"`, s.data)
	}
	return s.data, etag, s.status, s.changed
}

func (s *bundleServer) serve(data []byte, status int, tagless bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data, s.status, s.tagless = data, status, tagless
	close(s.changed)
	s.changed = make(chan struct{})
}

// poll runs a Poller of the server. What it takes arrives on the channel; what
// begins with "bad" is refused.
func poll(t *testing.T, s *bundleServer, longPoll time.Duration) (*fetch.Poller, <-chan string) {
	t.Helper()
	taken := make(chan string, 100)
	p, err := fetch.NewPoller(fetch.PollConfig{
		URL: s.URL + "/bundle.tar.gz", MinInterval: time.Millisecond, MaxInterval: 2 * time.Millisecond, LongPoll: longPoll,
		Log: slog.New(slog.DiscardHandler),
		Take: func(_ context.Context, data []byte) error {
			taken <- string(data)
			switch {
			case bytes.HasPrefix(data, []byte("bad")):
				return fmt.Errorf("take: %w", policy.Refused{{Message: "it is bad"}})
			case bytes.HasPrefix(data, []byte("later")):
				return errors.New("no room")
			}
			return nil
		},
	})
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	return p, taken
}

func want(t *testing.T, taken <-chan string, what string) {
	t.Helper()
	if got := <-taken; got != what {
		t.Fatalf("took %q, want %q", got, what)
	}
}

// more waits for n requests that begin after now.
func (s *bundleServer) more(n int) {
	for len(s.asked) > 0 {
		<-s.asked
	}
	for range n {
		<-s.asked
	}
}

func TestPoll(t *testing.T) {
	s := newBundleServer(t, false)
	s.serve([]byte("one"), http.StatusOK, false)
	p, taken := poll(t, s, 0)
	want(t, taken, "one")
	s.more(3)
	s.serve([]byte("two"), http.StatusOK, false)
	want(t, taken, "two")

	// Refused once, whether the server names what it serves or not.
	s.serve([]byte("bad"), http.StatusOK, false)
	want(t, taken, "bad")
	s.more(3)
	s.serve([]byte("bad"), http.StatusOK, true)
	s.more(3)
	if st := p.Status(); !strings.Contains(st.Refused, "it is bad") || st.Failing != "" || st.Contact.IsZero() {
		t.Errorf("after a refusal: %+v", st)
	}
	if len(taken) > 0 {
		t.Errorf("taken again: %q", <-taken)
	}

	// A failure is not the bundle's fault.
	s.serve([]byte("oops"), http.StatusInternalServerError, true)
	s.more(3)
	if st := p.Status(); !strings.Contains(st.Failing, "500") {
		t.Errorf("after failures: %+v", st)
	}
	s.serve(make([]byte, bundle.MaxArchiveBytes+1), http.StatusOK, true)
	s.more(3)
	if st := p.Status(); !strings.Contains(st.Failing, "larger than") {
		t.Errorf("after too much: %+v", st)
	}
	// What could not be taken for another reason is offered again.
	s.serve([]byte("later"), http.StatusOK, false)
	want(t, taken, "later")
	want(t, taken, "later")
	s.serve([]byte("three"), http.StatusOK, false)
	for got := range taken {
		if got == "three" {
			break
		}
		if got != "later" {
			t.Fatalf("took %q", got)
		}
	}
	s.more(2)
	if st := p.Status(); st.Failing != "" || st.Refused != "" {
		t.Errorf("when all is well: %+v", st)
	}
}

func TestLongPoll(t *testing.T) {
	s := newBundleServer(t, true)
	s.serve([]byte("one"), http.StatusOK, false)
	_, taken := poll(t, s, 30*time.Second)
	want(t, taken, "one")
	if got := <-s.asked; got != " modes=snapshot;wait=30" {
		t.Errorf("first request: %q", got)
	}
	for i, text := range []string{"two", "three", "four"} {
		if got := <-s.asked; !strings.HasPrefix(got, `"`) || !strings.HasSuffix(got, "modes=snapshot;wait=30") {
			t.Errorf("request %d: %q", i, got)
		}
		s.serve([]byte(text), http.StatusOK, false)
		want(t, taken, text)
	}
}

// A server that says nothing of long polls is polled.
func TestNoLongPoll(t *testing.T) {
	s := newBundleServer(t, false)
	s.serve([]byte("one"), http.StatusOK, false)
	_, taken := poll(t, s, 30*time.Second)
	want(t, taken, "one")
	<-s.asked
	if got := <-s.asked; !strings.HasSuffix(got, " modes=snapshot") {
		t.Errorf("second request: %q", got)
	}
	s.serve([]byte("two"), http.StatusOK, false)
	want(t, taken, "two")
}

package httppep_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/pep/httppep"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
)

const ownID = "spiffe://example.org/svc/orders"

// handler is an enforcement point whose peer is the web service.
func handler(t testing.TB, rec *peptest.Recorder, next http.HandlerFunc, change func(*httppep.Config)) (*httppep.Handler, *pep.Enforcer) {
	t.Helper()
	e, err := pep.New(pep.Config{Service: "orders", ID: spiffeid.RequireFromString(ownID), Recorder: rec})
	if err != nil {
		t.Fatal(err)
	}
	e.SetSnapshot(peptest.Snapshot(1, "orders", ownID, peptest.Verdict(policy.Allow)))
	cfg := httppep.Config{Enforcer: e, Next: next, Peer: func(*http.Request) (*pep.Peer, error) { return &pep.Peer{IP: "192.0.2.7", Port: 7}, nil }}
	if change != nil {
		change(&cfg)
	}
	h, err := httppep.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h, e
}

func TestUnknownPeerIsRefused(t *testing.T) {
	rec := &peptest.Recorder{}
	h, _ := handler(t, rec, func(http.ResponseWriter, *http.Request) { t.Error("reached") }, func(c *httppep.Config) {
		c.Peer = func(*http.Request) (*pep.Peer, error) { return nil, errors.New("nobody knows") }
	})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	ev := rec.Events()[0]
	if w.Code != 401 || ev.Outcome != auditv1.Outcome_OUTCOME_REFUSED || ev.Reason != "nobody knows" || ev.Input.Connection.PeerIP != "192.0.2.1" {
		t.Errorf("%d, %+v", w.Code, ev)
	}
}

func TestServiceMayAllowDoubleSlash(t *testing.T) {
	rec := &peptest.Recorder{}
	h, e := handler(t, rec, func(http.ResponseWriter, *http.Request) {}, nil)
	get := func() int {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI = "/a//b"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	if code := get(); code != 400 {
		t.Errorf("strict: %d", code)
	}
	s := peptest.Snapshot(2, "orders", ownID, peptest.Verdict(policy.Allow))
	s.Services["orders"] = policy.Service{Name: "orders", SPIFFEIDs: []string{ownID}, Mode: policy.Enforce, AllowDoubleSlash: true}
	e.SetSnapshot(s)
	if code := get(); code != 200 {
		t.Errorf("allowed: %d", code)
	}
}

func TestHostAndAuthorityDisagree(t *testing.T) {
	rec := &peptest.Recorder{}
	h, _ := handler(t, rec, func(http.ResponseWriter, *http.Request) {}, nil)
	r := httptest.NewRequest("GET", "/", nil)
	r.ProtoMajor, r.Host = 2, "a.example"
	r.Header["Host"] = []string{"b.example"}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 400 || !strings.Contains(rec.Events()[0].Reason, "disagree") {
		t.Errorf("%d, %+v", w.Code, rec.Events()[0])
	}
}

func TestGRPCAnswers(t *testing.T) {
	for status, want := range map[int]string{403: "7", 400: "3", 401: "16", 405: "12", 431: "8", 502: "14", 503: "14", 504: "14", 418: "2"} {
		w := httptest.NewRecorder()
		httppep.Answer(w, true, pep.Result{Status: status, DecisionID: "d-9"})
		if w.Code != 200 || w.Header().Get("Grpc-Status") != want || !strings.Contains(w.Header().Get("Grpc-Message"), "d-9") || w.Body.Len() != 0 {
			t.Errorf("%d: %d %v", status, w.Code, w.Header())
		}
	}
}

// A revision that changes between the decision and the entry of a request ends
// the request too.
func TestWatchMissesNothing(t *testing.T) {
	rec := &peptest.Recorder{}
	var e *pep.Enforcer
	deny := peptest.Snapshot(2, "orders", ownID, peptest.Verdict(policy.Deny))
	h, e := handler(t, rec, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		if cause := context.Cause(r.Context()); !errors.Is(cause, httppep.ErrRightEnded) {
			t.Errorf("ended because %v", cause)
		}
	}, nil)
	e.SetSnapshot(peptest.Snapshot(1, "orders", ownID, peptest.Decide(func(in *policy.Input, out *policy.Decision) {
		out.Verdict = policy.Allow
		e.SetSnapshot(deny) // nobody watches yet
	})))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if n := h.Open(); n != 0 {
		t.Errorf("%d requests open", n)
	}
}

func TestWatchEndsOpenRequests(t *testing.T) {
	rec := &peptest.Recorder{}
	entered := make(chan struct{}, 2)
	h, e := handler(t, rec, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	watched, done := make(chan struct{}), make(chan string, 2)
	go func() { h.Watch(ctx); close(watched) }()
	e.SetSnapshot(peptest.Snapshot(1, "orders", ownID, peptest.Verdict(policy.Allow)))
	leave := make(chan context.CancelFunc, 1)
	for _, path := range []string{"/kept", "/ended"} {
		go func() {
			r := httptest.NewRequest("GET", path, nil)
			rctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
			defer cancel()
			if path == "/kept" {
				leave <- cancel
			}
			h.ServeHTTP(httptest.NewRecorder(), r.WithContext(rctx))
			done <- path
		}()
		<-entered
	}
	e.SetSnapshot(peptest.Snapshot(2, "orders", ownID, peptest.Decide(func(in *policy.Input, out *policy.Decision) {
		out.Verdict = policy.Deny
		if in.Request.Segments[0] == "kept" {
			out.Verdict = policy.Allow
		}
	})))
	if first := <-done; first != "/ended" {
		t.Errorf("%s ended first", first)
	}
	if n := h.Open(); n != 1 {
		t.Errorf("%d requests open, want the one that is still allowed", n)
	}
	(<-leave)()
	<-done
	cancel()
	<-watched
}

// An open request ends with the time for which it was allowed, whether the
// limit was there when it began or came with a revision.
func TestWatchEndsWhatExpires(t *testing.T) {
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprintf("later=%v", later), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				limited := peptest.Decide(func(in *policy.Input, out *policy.Decision) {
					if out.Verdict = policy.Deny; in.Time.Before(began.Add(30 * time.Minute)) {
						out.Verdict, out.Expires = policy.Allow, began.Add(30*time.Minute)
					}
				})
				snapshot := func(number uint64, d policy.Decider) *policy.Snapshot {
					s := peptest.Snapshot(number, "orders", ownID, d)
					s.Activated = began
					return s
				}
				rec := &peptest.Recorder{}
				e, err := pep.New(pep.Config{Service: "orders", ID: spiffeid.RequireFromString(ownID), Recorder: rec})
				if err != nil {
					t.Fatal(err)
				}
				h, err := httppep.New(httppep.Config{
					Enforcer: e, Peer: func(*http.Request) (*pep.Peer, error) { return &pep.Peer{}, nil },
					Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go h.Watch(ctx)
				first := policy.Decider(limited)
				if later {
					first = peptest.Verdict(policy.Allow)
				}
				e.SetSnapshot(snapshot(1, first))
				synctest.Wait() // Watch has looked, and saw nothing open
				rctx, leave := context.WithTimeout(ctx, time.Hour)
				defer leave()
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(rctx))
				}()
				synctest.Wait()
				if later {
					e.SetSnapshot(snapshot(2, limited))
				}
				<-ended
				if d := time.Since(began); d != 30*time.Minute {
					t.Errorf("ended after %s", d)
				}
				events := rec.Events()
				if last := events[len(events)-1]; last.Outcome != auditv1.Outcome_OUTCOME_DENY {
					t.Errorf("recorded last: %v", last.Outcome)
				}
			})
		})
	}
}

func BenchmarkHandler(b *testing.B) {
	e, err := pep.New(pep.Config{Service: "orders", ID: spiffeid.RequireFromString(ownID), Recorder: peptest.Discard{}})
	if err != nil {
		b.Fatal(err)
	}
	e.SetSnapshot(peptest.Snapshot(1, "orders", ownID, peptest.Verdict(policy.Allow)))
	peer := &pep.Peer{IP: "192.0.2.7", Port: 7}
	h, err := httppep.New(httppep.Config{Enforcer: e, Peer: func(*http.Request) (*pep.Peer, error) { return peer, nil }, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/orders/42?full=1", nil)
	r.Header.Set("Accept", "*/*")
	w := &nowhere{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		delete(r.Header, "X-Forwarded-For")
		h.ServeHTTP(w, r)
	}
}

type nowhere struct{ h http.Header }

func (w *nowhere) Header() http.Header         { return w.h }
func (w *nowhere) Write(p []byte) (int, error) { return io.Discard.Write(p) }
func (w *nowhere) WriteHeader(int)             {}

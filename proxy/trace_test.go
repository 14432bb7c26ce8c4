package proxy

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/internal/testpki"
)

// A trace goes through both sidecars as it came: they are no part of it. Its ID is
// on record.
func TestTracePassesThrough(t *testing.T) {
	const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	trace := map[string]string{
		"traceparent": "00-" + traceID + "-00f067aa0ba902b7-01",
		"tracestate":  "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7",
		"baggage":     "tenant=blue;ttl=3, user%20id=7",
	}
	ca := testpki.New(t, "example.org")
	seen := make(chan http.Header, 1)
	srv, _, url := pair(t, ca, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() }))
	for name, client := range map[string]*http.Client{"HTTP/1.1": newClient(t), "HTTP/2": newH2C(t)} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range trace {
			req.Header.Set(k, v)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		header := <-seen
		for k, v := range trace {
			if got := header.Values(k); !cmp.Equal(got, []string{v}) {
				t.Errorf("%s: the application saw %s: %q", name, k, got)
			}
		}
		if events := srv.rec.Events(); events[len(events)-1].TraceID != traceID {
			t.Errorf("%s: recorded with trace %q", name, events[len(events)-1].TraceID)
		}
	}

	gsrv, _, a, client := grpcPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for k, v := range trace {
		ctx = metadata.AppendToOutgoingContext(ctx, k, v)
	}
	if _, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	md := <-a.header
	for k, v := range trace {
		if got := md.Get(k); !cmp.Equal(got, []string{v}) {
			t.Errorf("gRPC: the application saw %s: %q", k, got)
		}
	}
	if got := gsrv.rec.Events()[0].TraceID; got != traceID {
		t.Errorf("gRPC: recorded with trace %q", got)
	}
}

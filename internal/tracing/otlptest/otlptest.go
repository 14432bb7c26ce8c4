// Package otlptest is an OpenTelemetry collector for tests: it takes traces by
// OTLP over gRPC on loopback, and keeps them.
package otlptest

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// patience is how long spans are waited for.
const patience = 30 * time.Second

// Span is a span and the service that it is of.
type Span struct {
	*tracepb.Span
	Service string
	// Resource is what is said of the service.
	Resource map[string]string
}

// Attribute is what a span says under a key: a text, a number, or a list joined
// by commas; "" where it says nothing.
func (s Span) Attribute(key string) string { return attributes(s.Attributes)[key] }

// Collector keeps the traces that it is sent.
type Collector struct {
	coltracepb.UnimplementedTraceServiceServer
	// URL is where to send them.
	URL string

	t       testing.TB
	server  *grpc.Server
	mu      sync.Mutex
	spans   []Span
	changed chan struct{}
}

// Start runs a collector until the test ends. Without options it is plain.
func Start(t testing.TB, options ...grpc.ServerOption) *Collector {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{t: t, server: grpc.NewServer(options...), URL: "http://" + ln.Addr().String(), changed: make(chan struct{})}
	if len(options) > 0 {
		c.URL = "https://" + ln.Addr().String()
	}
	coltracepb.RegisterTraceServiceServer(c.server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = c.server.Serve(ln) })
	t.Cleanup(func() {
		c.Stop()
		serving.Wait()
	})
	return c
}

// Stop ends the collector before the test does.
func (c *Collector) Stop() { c.server.Stop() }

// Export implements coltracepb.TraceServiceServer.
func (c *Collector) Export(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		about := attributes(rs.Resource.GetAttributes())
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, Span{Span: s, Service: about["service.name"], Resource: about})
			}
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

// Spans are those that have arrived.
func (c *Collector) Spans() []Span {
	spans, _ := c.now()
	return spans
}

func (c *Collector) now() ([]Span, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans), c.changed
}

// Await returns what find finds in the spans, once it is not nil. The test fails
// if that never comes.
func (c *Collector) Await(what string, find func([]Span) []Span) []Span {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		spans, changed := c.now()
		if found := find(spans); found != nil {
			return found
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.t.Fatalf("no %s among:\n%s", what, Tree(spans))
		}
	}
}

// AwaitTrace returns the trace of the first span that is wanted, whole, once it has
// spans of all names, each as service: name.
func (c *Collector) AwaitTrace(wanted func(Span) bool, names ...string) []Span {
	c.t.Helper()
	return c.Await(strings.Join(names, ", "), func(spans []Span) []Span {
		for _, s := range spans {
			if !wanted(s) {
				continue
			}
			trace := Trace(spans, s)
			missing := func(name string) bool {
				return !slices.ContainsFunc(trace, func(s Span) bool { return s.Service+": "+s.Name == name })
			}
			if !slices.ContainsFunc(names, missing) {
				return trace
			}
		}
		return nil
	})
}

// Trace are the spans of the trace that s is of, in which each has its parent
// but for the first; nil where one is missing.
func Trace(spans []Span, s Span) []Span {
	var trace []Span
	ids := map[string]bool{"": true}
	for _, other := range spans {
		if string(other.TraceId) == string(s.TraceId) {
			trace = append(trace, other)
			ids[string(other.SpanId)] = true
		}
	}
	for _, other := range trace {
		if !ids[string(other.ParentSpanId)] {
			return nil
		}
	}
	slices.SortStableFunc(trace, func(a, b Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
	return trace
}

// Tree shows spans below their parents, as service and name.
func Tree(spans []Span) string {
	var out strings.Builder
	known := map[string]bool{}
	for _, s := range spans {
		known[string(s.SpanId)] = true
	}
	var below func(parent string, depth int)
	line := func(s Span, depth int) {
		out.WriteString(strings.Repeat("  ", depth) + s.Service + ": " + s.Name + "\n")
		below(string(s.SpanId), depth+1)
	}
	below = func(parent string, depth int) {
		for _, s := range spans {
			if string(s.ParentSpanId) == parent {
				line(s, depth)
			}
		}
	}
	for _, s := range spans {
		if !known[string(s.ParentSpanId)] {
			line(s, 0)
		}
	}
	return out.String()
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range list {
		m[kv.Key] = text(kv.Value)
	}
	return m
}

func text(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_ArrayValue:
		var parts []string
		for _, e := range v.ArrayValue.GetValues() {
			parts = append(parts, text(e))
		}
		return strings.Join(parts, ",")
	}
	return strings.Trim(strings.TrimSpace(v.String()), `"`)
}

// Package tracing is what the rooms of the house know of traces: where a span
// begins and what it says. What becomes of spans is decided by otlp, below. It
// knows OpenTelemetry's API and not its SDK.
//
// Where nothing is traced there is no Tracer, and nothing here allocates.
//
// A span says which workload and which entry, how many, by which method; never a
// token, a certificate request or a key.
package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// Attributes of spans.
const (
	SPIFFEID    = "writ.spiffe_id"
	SPIFFEIDs   = "writ.spiffe_ids"
	EntryID     = "writ.entry_id"
	EntryIDs    = "writ.entry_ids"
	Caller      = "writ.caller"
	Count       = "writ.count"
	Refused     = "writ.refused" // how many of Count
	Attestation = "writ.attestation_method"
	PID         = "process.pid"
)

// maxListed is how many members of a list a span has.
const maxListed = 32

// scope is where our spans are from, as OpenTelemetry has it.
const scope = "github.com/writ-dev/writ"

// Tracer begins spans. A nil Tracer begins none.
type Tracer struct {
	tracer         trace.Tracer
	server, client stats.Handler
}

// New makes a Tracer. The handlers carry traces over gRPC.
func New(provider trace.TracerProvider, server, client stats.Handler) *Tracer {
	return &Tracer{tracer: provider.Tracer(scope), server: server, client: client}
}

// ServerOptions have a gRPC server take up the traces of its callers.
func (t *Tracer) ServerOptions() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(t.server)}
}

// DialOptions have a gRPC client hand its traces on.
func (t *Tracer) DialOptions() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(t.client)}
}

// Begin begins what a program does by itself: a trace, or a part of that of ctx. With
// causes it is a part of the first, and linked to the others and to that of ctx.
func (t *Tracer) Begin(ctx context.Context, name string, causes ...Cause) (context.Context, Span) {
	return t.begin(ctx, name, trace.SpanKindInternal, causes)
}

// Serve begins an answer that is less than a call: a message of a stream. Causes are
// those of Begin.
func (t *Tracer) Serve(ctx context.Context, name string, causes ...Cause) (context.Context, Span) {
	return t.begin(ctx, name, trace.SpanKindServer, causes)
}

func (t *Tracer) begin(ctx context.Context, name string, kind trace.SpanKind, causes []Cause) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(kind)}
	if len(causes) > 0 {
		links := causes[1:]
		if of := trace.SpanContextFromContext(ctx); of.IsValid() {
			links = append(links[:len(links):len(links)], Cause{of})
		}
		for _, link := range links {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: link.span}))
		}
		ctx = trace.ContextWithSpanContext(ctx, causes[0].span)
	}
	// One that is not recorded is in ctx all the same, so that nobody further on
	// begins a trace in its place.
	ctx, span := t.tracer.Start(ctx, name, options...)
	if !span.IsRecording() {
		return ctx, Span{}
	}
	return ctx, Span{span}
}

// Start begins a part of what the span of ctx tells. Where that is not recorded,
// or there is none, it returns ctx.
func Start(ctx context.Context, name string) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, Span{span}
}

// Current is the span of ctx, to say more. It is not to be ended.
func Current(ctx context.Context) Span {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		return Span{span}
	}
	return Span{}
}

// Span is something that takes time. The zero Span is not recorded, and all its
// methods do nothing.
type Span struct{ span trace.Span }

// Recorded tells whether it is worth while to find out what to say.
func (s Span) Recorded() bool { return s.span != nil }

// String says something about the span.
func (s Span) String(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// Int says how many, or which.
func (s Span) Int(key string, value int) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int(key, value))
	}
}

// List says which, the first of them if they are very many.
func List[T any](s Span, key string, list []T, name func(T) string) {
	if s.span == nil {
		return
	}
	names := make([]string, min(len(list), maxListed))
	for i := range names {
		names[i] = name(list[i])
	}
	s.span.SetAttributes(attribute.StringSlice(key, names))
}

// End ends the span, as failed where there is an error. A second time does
// nothing.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End()
}

package tracing

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Cause is a span that something is a part of which happens later, or elsewhere, and
// not below a call: what a message of a stream sets off. The zero Cause is none.
type Cause struct{ span trace.SpanContext }

// CauseOf is the span of ctx; none where that is not recorded.
func CauseOf(ctx context.Context) Cause {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		return Cause{span.SpanContext()}
	}
	return Cause{}
}

// Known tells whether there is one.
func (c Cause) Known() bool { return c.span.IsValid() }

const traceparent = "traceparent"

// Traceparent is the cause as W3C Trace Context has it (section 3.2), to be sent; ""
// for none.
func (c Cause) Traceparent() string {
	if !c.Known() {
		return ""
	}
	header := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), c.span), header)
	return header[traceparent]
}

// ParseTraceparent is the cause that somebody sent; none where the text is not one.
func ParseTraceparent(text string) Cause {
	if text == "" {
		return Cause{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{traceparent: text})
	return Cause{trace.SpanContextFromContext(ctx)}
}

// Causes gathers what something is to be done for, until it is.
type Causes struct {
	mu   sync.Mutex
	list []Cause
}

// Add adds one, if it is known and there are not very many already.
func (c *Causes) Add(cause Cause) {
	if !cause.Known() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.list) < maxListed {
		c.list = append(c.list, cause)
	}
}

// Take takes them all.
func (c *Causes) Take() []Cause {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.list
	c.list = nil
	return taken
}

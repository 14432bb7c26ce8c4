package otlp

import (
	"context"
	"log/slog"
	"sync/atomic"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// queue bounds the spans that have ended and are not with the collector. The
// SDK's processor, which is behind it, has a queue of the same length and drops
// what does not fit without telling anybody.
type queue struct {
	sdktrace.SpanProcessor
	limit int64
	sent  *exporter
}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if q.sent.waiting.Add(1) > q.limit {
		q.sent.waiting.Add(-1)
		q.sent.full.Add(1)
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// exporter counts what becomes of spans, and takes out what must not leave.
type exporter struct {
	sdktrace.SpanExporter
	endpoint string
	log      *slog.Logger

	waiting                atomic.Int64
	exported, full, failed atomic.Uint64
	// failing is the state that the log has; one batch is exported at a time.
	failing bool

	// ending is done when exports are to be given up.
	ending context.Context
	giveUp context.CancelFunc
}

func newExporter(to sdktrace.SpanExporter, endpoint string, log *slog.Logger) *exporter {
	e := &exporter{SpanExporter: to, endpoint: endpoint, log: log}
	e.ending, e.giveUp = context.WithCancel(context.Background())
	return e
}

// ExportSpans implements sdktrace.SpanExporter. It has no error for the SDK, which
// would write it to standard error.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ending, cancel)()
	err := e.SpanExporter.ExportSpans(ctx, withoutTokens(spans))
	e.waiting.Add(-int64(len(spans)))
	if err == nil {
		e.exported.Add(uint64(len(spans)))
		if e.failing {
			e.log.Info("the collector takes traces again", "endpoint", e.endpoint)
		}
	} else {
		e.failed.Add(uint64(len(spans)))
		if !e.failing {
			e.log.Warn("the collector does not take traces; they are dropped", "endpoint", e.endpoint, "error", err)
		}
	}
	e.failing = err != nil
	return nil
}

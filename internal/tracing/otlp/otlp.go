// Package otlp sends what tracing records to an OpenTelemetry collector, over
// gRPC. Nothing in it ever waits for the collector but Close, and that not for
// long: spans wait in a bounded queue, and what is lost is counted.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/writ-dev/writ/internal/tracing"
)

// flushTime is what the last spans get at the end.
const flushTime = 2 * time.Second

// Options are what an Exporter needs beside its configuration.
type Options struct {
	// Service and Version are of the program; Instance, if given, tells it from
	// others of its kind.
	Service, Version, Instance string
	// Getenv is os.Getenv.
	Getenv func(string) string
	Log    *slog.Logger
	// Untraced are methods (/service/method) and services (/service/) without
	// spans: those whose calls last.
	Untraced []string
	// Strangers are the methods by which the traces of callers count that have
	// shown no certificate, on listeners where others do. By other methods such a
	// caller's trace is linked to and not gone on with: he does not choose what
	// is recorded.
	Strangers []string
}

// Exporter sends spans. A nil Exporter is tracing that is off.
type Exporter struct {
	provider *sdktrace.TracerProvider
	sent     *exporter
	tracer   *tracing.Tracer
}

// Check finds what Open would not go on with in a valid configuration and in the
// environment. at makes an error at a key of the configuration.
func Check(cfg *tracing.Config, getenv func(string) string, at func(key, format string, args ...any) error) error {
	if cfg != nil && cfg.Endpoint != "" {
		if _, _, err := tracing.ParseEndpoint(cfg.Endpoint); err != nil {
			return nil // Validate tells
		}
	}
	s, err := resolve(cfg, getenv)
	if err == nil && s != nil {
		_, err = about(Options{})
	}
	if err == nil {
		return nil
	}
	// What the configuration says stands in its file, and the rest nowhere.
	if file := (*fileError)(nil); errors.As(err, &file) {
		return at("tracing.ca_file", "%v", file.err)
	}
	return fmt.Errorf("tracing: %w", err)
}

// about is what the collector is told of the program. What the environment says
// comes last, and stands.
func about(opt Options) (*resource.Resource, error) {
	known := []attribute.KeyValue{semconv.ServiceName(opt.Service), semconv.ServiceVersion(opt.Version)}
	if opt.Instance != "" {
		known = append(known, semconv.ServiceInstanceID(opt.Instance))
	}
	r, err := resource.New(context.Background(), resource.WithTelemetrySDK(), resource.WithAttributes(known...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	return r, nil
}

// Open begins to trace, or returns nil where that is off. It connects to nothing
// before there are spans. Close it.
func Open(cfg *tracing.Config, opt Options) (*Exporter, error) {
	s, err := resolve(cfg, opt.Getenv)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	if s == nil {
		return nil, nil
	}
	res, err := about(opt)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	client, err := otlptracegrpc.New(context.Background(), s.client()...)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	e := &Exporter{sent: newExporter(client, s.endpoint, opt.Log)}
	batches := sdktrace.NewBatchSpanProcessor(e.sent, sdktrace.WithMaxQueueSize(s.queue))
	e.provider = sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithSampler(s.sampler),
		sdktrace.WithSpanProcessor(&queue{SpanProcessor: batches, limit: int64(s.queue), sent: e.sent}))
	server, clientHandler := handlers(e.provider, opt)
	e.tracer = tracing.New(e.provider, server, clientHandler)
	opt.Log.Info("traces go to a collector", "endpoint", s.endpoint, "sampler", s.sampler.Description())
	return e, nil
}

// Tracer begins spans, nil where tracing is off.
func (e *Exporter) Tracer() *tracing.Tracer {
	if e == nil {
		return nil
	}
	return e.tracer
}

// Close sends what is left, for at most two seconds.
func (e *Exporter) Close() { e.close(flushTime) }

func (e *Exporter) close(patience time.Duration) {
	if e == nil {
		return
	}
	// It is the export that is given up, not the wait for it: nothing goes on
	// behind our back.
	timer := time.AfterFunc(patience, e.sent.giveUp)
	defer timer.Stop()
	_ = e.provider.Shutdown(context.Background()) // what failed is counted and logged
	e.sent.giveUp()
}

// Register makes metrics of what became of the spans, with names that begin with
// prefix. Without tracing there are none.
func (e *Exporter) Register(reg prometheus.Registerer, prefix string) {
	if e == nil {
		return
	}
	counter := func(name, help string, labels prometheus.Labels, value func() uint64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + name, Help: help, ConstLabels: labels}, func() float64 { return float64(value()) }))
	}
	counter("trace_spans_exported_total", "Spans that the collector took.", nil, e.sent.exported.Load)
	const dropped, help = "trace_spans_dropped_total", "Spans that were lost: because the queue was full, or because the collector did not take them."
	counter(dropped, help, prometheus.Labels{"cause": "queue_full"}, e.sent.full.Load)
	counter(dropped, help, prometheus.Labels{"cause": "not_taken"}, e.sent.failed.Load)
}

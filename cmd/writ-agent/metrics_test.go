package main

import (
	"log/slog"
	"testing"

	"github.com/writ-dev/writ/internal/promtest"
	"github.com/writ-dev/writ/internal/tracing"
)

// The page of metrics has all of them, and none that is not.
func TestMetricsPage(t *testing.T) {
	m := newMetrics(nil)
	m.watch(nil)
	traces, err := openTraces(&tracing.Config{Endpoint: "http://127.0.0.1:1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer traces.Close()
	traces.Register(m.registry, "writ_agent_")
	promtest.OnPage(t, "../../docs/reference/metrics.md", "writ_agent_", m.registry)
}

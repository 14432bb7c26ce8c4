package main

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"github.com/writ-dev/writ/internal/tracing"
	"github.com/writ-dev/writ/internal/writdconf"
)

// Nothing is traced unless that is asked for, and what is asked for wrongly is
// found by --check.
func TestTracesOff(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		t.Setenv(name, "")
	}
	d := newDomain(t, "a.test", func(*writdconf.Config) {})
	if d.traces != nil || len(d.traces.Tracer().ServerOptions()) > 0 {
		t.Error("traces are sent")
	}
	stacks := make([]byte, 4<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("go.opentelemetry.io")) {
		t.Errorf("tracing runs:\n%s", stacks)
	}
	for want, cfg := range map[string]tracing.Config{
		"tracing.endpoint: want https://host:port": {Endpoint: "collector:4317"},
		"tracing.ca_file: open /absent":            {Endpoint: "https://collector:4317", CAFile: "/absent"},
	} {
		bad := d.cfg
		bad.Tracing = &cfg
		if err := validate(&bad, unplaced); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
	t.Setenv("OTEL_TRACES_SAMPLER", "sometimes")
	fine := d.cfg
	if err := validate(&fine, unplaced); err == nil || !strings.Contains(err.Error(), "tracing: OTEL_TRACES_SAMPLER: want always_on") {
		t.Errorf("the environment: %v", err)
	}
}

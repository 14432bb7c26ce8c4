package tracing_test

import (
	"errors"
	"testing"

	"github.com/writ-dev/writ/internal/tracing"
)

// Without tracing nothing is allocated, and the context stays what it is.
func TestOffIsFree(t *testing.T) {
	var off *tracing.Tracer
	if off.ServerOptions() != nil || off.DialOptions() != nil {
		t.Error("a handler is installed")
	}
	ctx := t.Context()
	failure, list := errors.New("failed"), []string{"a", "b"}
	allocated := testing.AllocsPerRun(100, func() {
		begun, root := off.Begin(ctx, "root")
		served, answer := off.Serve(begun, "answer")
		started, part := tracing.Start(served, "part")
		if started != ctx {
			t.Error("the context is another")
		}
		part.Int(tracing.Count, 1)
		part.String(tracing.EntryID, "e")
		tracing.List(part, tracing.SPIFFEIDs, list, func(s string) string { return s + s })
		tracing.Current(started).String(tracing.Caller, "c")
		part.End(failure)
		answer.End(nil)
		root.End(nil)
	})
	if allocated != 0 {
		t.Errorf("%v allocations", allocated)
	}
}

func TestParseEndpoint(t *testing.T) {
	for _, tc := range []struct {
		text, address string
		plain         bool
	}{
		{"https://collector.example.org:4317", "collector.example.org:4317", false},
		{"http://127.0.0.1:4317/", "127.0.0.1:4317", true},
		{"https://[::1]", "[::1]:4317", false},
	} {
		address, plain, err := tracing.ParseEndpoint(tc.text)
		if err != nil || address != tc.address || plain != tc.plain {
			t.Errorf("%s: %s, plain %v, %v", tc.text, address, plain, err)
		}
	}
	for _, text := range []string{
		"", "collector:4317", "collector", "grpc://collector:4317", "unix:///run/otel.sock", "https://", "https://:4317",
		"https://u:p@collector:4317", "https://collector:4317/v1/traces", "https://collector:4317?x=1", "https://collector:0", "https://collector:99999", "https://col lector",
	} {
		if address, _, err := tracing.ParseEndpoint(text); err == nil {
			t.Errorf("%q is %s", text, address)
		}
	}
}

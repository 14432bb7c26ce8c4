package tracing_test

import (
	"errors"
	"strings"
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
	var causes tracing.Causes
	allocated := testing.AllocsPerRun(100, func() {
		causes.Add(tracing.ParseTraceparent(tracing.CauseOf(ctx).Traceparent()))
		begun, root := off.Begin(ctx, "root", causes.Take()...)
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

// A cause comes out as it was sent; what is no traceparent is none.
func TestTraceparent(t *testing.T) {
	const text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if got := tracing.ParseTraceparent(text); !got.Known() || got.Traceparent() != text {
		t.Errorf("got %q", got.Traceparent())
	}
	for _, bad := range []string{
		"", "x", "00-0-0-0", text + "-x", "ff" + text[2:], "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", strings.ToUpper(text), strings.Repeat(text, 1000),
	} {
		if got := tracing.ParseTraceparent(bad); got.Known() || got.Traceparent() != "" {
			t.Errorf("%.80q is %q", bad, got.Traceparent())
		}
	}
}

// Causes are taken once, and do not pile up where nobody takes them.
func TestCauses(t *testing.T) {
	one := tracing.ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	var c tracing.Causes
	c.Add(tracing.Cause{})
	for range 1000 {
		c.Add(one)
	}
	if n := len(c.Take()); n != 32 || c.Take() != nil {
		t.Errorf("%d are kept", n)
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

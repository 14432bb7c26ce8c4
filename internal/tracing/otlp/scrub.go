package otlp

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// An agent that joined with a token has it in its ID, in our issuer as in SPIRE's.
// It is used up, and still nothing for others to read. The hash is that of the
// agent's log.
var tokenInID = regexp.MustCompile(`(/spire/agent/join_token/)([^/\s"',;)]+)`)

func withoutToken(text string) string {
	return tokenInID.ReplaceAllStringFunc(text, func(found string) string {
		parts := tokenInID.FindStringSubmatch(found)
		sum := sha256.Sum256([]byte(parts[2]))
		return parts[1] + hex.EncodeToString(sum[:])[:12]
	})
}

var givenUp = semconv.RPCResponseStatusCode("CANCELLED")

// scrubbed is a span whose texts hold no join token, whoever set them.
type scrubbed struct{ sdktrace.ReadOnlySpan }

func withoutTokens(spans []sdktrace.ReadOnlySpan) []sdktrace.ReadOnlySpan {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		out[i] = scrubbed{s}
	}
	return out
}

// Status implements sdktrace.ReadOnlySpan. A call that this program gave up, as it
// does once a stream has told what it was opened for, has not failed by that.
func (s scrubbed) Status() sdktrace.Status {
	status := s.ReadOnlySpan.Status()
	if s.SpanKind() == trace.SpanKindClient && slices.Contains(s.ReadOnlySpan.Attributes(), givenUp) {
		return sdktrace.Status{}
	}
	status.Description = withoutToken(status.Description)
	return status
}

// Attributes implements sdktrace.ReadOnlySpan.
func (s scrubbed) Attributes() []attribute.KeyValue { return scrub(s.ReadOnlySpan.Attributes()) }

// Events implements sdktrace.ReadOnlySpan.
func (s scrubbed) Events() []sdktrace.Event {
	events := s.ReadOnlySpan.Events()
	out := make([]sdktrace.Event, len(events))
	for i, e := range events {
		e.Attributes = scrub(e.Attributes)
		out[i] = e
	}
	return out
}

func scrub(list []attribute.KeyValue) []attribute.KeyValue {
	out := make([]attribute.KeyValue, len(list))
	for i, kv := range list {
		switch kv.Value.Type() {
		case attribute.STRING:
			kv.Value = attribute.StringValue(withoutToken(kv.Value.AsString()))
		case attribute.STRINGSLICE:
			texts := kv.Value.AsStringSlice()
			for n := range texts {
				texts[n] = withoutToken(texts[n])
			}
			kv.Value = attribute.StringSliceValue(texts)
		}
		out[i] = kv
	}
	return out
}

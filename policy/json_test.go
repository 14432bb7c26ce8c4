package policy_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
)

func fullInput() *policy.Input {
	return &policy.Input{
		Direction:   policy.Inbound,
		Layer:       policy.LayerRequest,
		Source:      policy.Source{ID: "spiffe://example.org/svc/web", TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "orders", ID: "spiffe://example.org/svc/orders", Port: 8443},
		Request: policy.Request{
			Protocol: policy.GRPC, Method: "POST", Host: "orders", Path: "/shop.Orders/Get", Segments: []string{"shop.Orders", "Get"},
			Query:       policy.MapValues{"q": {"1", "ünïcode"}},
			Headers:     policy.MapValues{"x-tenant": {"a"}, "te": {"trailers"}},
			GRPCService: "shop.Orders", GRPCMethod: "Get", ContentLength: -1,
		},
		Tokens: []policy.Token{{
			Issuer: "https://id.example.org", Subject: "ann", Audience: []string{"orders"},
			Claims: map[string]any{"n": json.Number("12345678901234567890"), "deep": map[string]any{"list": []any{"a", nil, true}}},
		}},
		TokenStatus: policy.TokenValid,
		Connection:  policy.Connection{PeerIP: "127.0.0.1", ClientIP: "10.0.0.1", TLSVersion: "1.3", SNI: "orders", ALPN: "h2"},
		Time:        time.Date(2030, 1, 31, 12, 0, 0, 123456789, time.UTC),
	}
}

func TestInputRoundTrip(t *testing.T) {
	connection := &policy.Input{Direction: policy.Inbound, Layer: policy.LayerConnection,
		Source: policy.Source{Authn: policy.AuthnNone}, TokenStatus: policy.TokenAbsent, Time: time.Unix(1, 0).UTC()}
	for _, in := range []*policy.Input{fullInput(), connection} {
		data, err := policy.EncodeInput(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := policy.DecodeInput(data)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if diff := cmp.Diff(in, got); diff != "" {
			t.Errorf("round trip (-want +got):\n%s", diff)
		}
	}
}

func TestDecodeInputRefuses(t *testing.T) {
	data, err := policy.EncodeInput(fullInput())
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	tests := []struct{ name, old, new, want string }{
		{"misspelt field", `"token_status"`, `"token_statu"`, `unknown field "token_statu": did you mean "token_status"?`},
		{"misspelt nested field", `"method":"POST"`, `"metod":"POST"`, `input.request: unknown field "metod": did you mean "method"?`},
		{"version", `"version":1`, `"version":2`, `input.version: want 1, got 2`},
		{"version as text", `"version":1`, `"version":"1"`, `input.version: want 1`},
		{"enum", `"direction":"inbound"`, `"direction":"sideways"`, `want inbound or outbound, got "sideways"`},
		{"port", `"port":8443`, `"port":65536`, `input.destination.port: want a whole number from 0 to 65535`},
		{"fraction", `"port":8443`, `"port":1.5`, `input.destination.port`},
		{"missing", `"sni":"orders",`, ``, `input.connection.sni: missing`},
		{"duplicate", `"layer":"request"`, `"layer":"request","layer":"connection"`, `"layer" is given twice`},
		{"request at connection", `"layer":"request"`, `"layer":"connection"`, `there is none at layer connection`},
		{"header case", `"x-tenant"`, `"X-Tenant"`, `must be lower case: "x-tenant"`},
		{"header value", `["trailers"]`, `"trailers"`, `input.request.headers["te"]: want a list of texts`},
		{"bad time", `2030-01-31T12`, `yesterday`, `input.time: want a time`},
		{"null object", `"connection":{`, `"connection":null,"x":{`, `unknown field "x"`},
		{"bad UTF-8", `"ann"`, "\"\xff\"", `not valid UTF-8`},
		{"trailing", `{"version"`, `{} {"version"`, `more after the end`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.new, 1)
			if text == good {
				t.Fatalf("%q is not in %s", tt.old, good)
			}
			_, err := policy.DecodeInput([]byte(text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := policy.DecodeInput([]byte(strings.Repeat("[", 100000))); err == nil || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("deep nesting: %v", err)
	}
}

func FuzzDecodeInput(f *testing.F) {
	data, err := policy.EncodeInput(fullInput())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"request":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := policy.DecodeInput(data)
		if err != nil {
			return
		}
		again, err := policy.EncodeInput(in)
		if err != nil {
			t.Fatalf("accepted but not encodable: %v", err)
		}
		back, err := policy.DecodeInput(again)
		if err != nil {
			t.Fatalf("own output refused: %v\n%s", err, again)
		}
		if diff := cmp.Diff(in, back); diff != "" && !in.Time.IsZero() {
			t.Fatalf("round trip (-want +got):\n%s", diff)
		}
	})
}

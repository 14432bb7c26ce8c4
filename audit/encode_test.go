package audit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

func sample() *Event {
	return &Event{
		Kind: auditv1.Kind_KIND_DECISION, Time: time.Unix(1700000000, 123), Outcome: auditv1.Outcome_OUTCOME_DENY,
		Mode: policy.Enforce, Enforced: true, TraceID: "0af7651916cd43dd8448eb211c80319c", Latency: 1234,
		Input: &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest,
			Source:      policy.Source{ID: "spiffe://example.org/svc/a", TrustDomain: "example.org", Path: "/svc/a", Authn: policy.AuthnMTLS, Serial: []byte{1, 2, 3}},
			Destination: policy.Destination{Service: "web", ID: "spiffe://example.org/svc/web", Port: 8443},
			Request: policy.Request{
				Protocol: policy.HTTP, Method: "GET", Host: "web.example.org", Path: "/v1/" + strings.Repeat("x", 200),
				Headers: policy.MapValues{
					"x-team": {"red", "blue"}, "authorization": {"Basic dXNlcjpwYXNz"}, "x-other": {"secret"}, "x-big": {strings.Repeat("v", 2000)},
					"x-trace": {"Bearer abcdef"}, "x-note": {"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"}, "x-bad": {"\xff"},
				},
				Query:         policy.MapValues{"page": {"2"}, "access_token": {"t"}},
				ContentLength: -1,
			},
			Connection:  policy.Connection{PeerIP: "10.0.0.1", PeerPort: 40000, KeyExchange: "X25519MLKEM768", ClientIP: "10.0.0.1", TLSVersion: "1.3", SNI: "web", ALPN: "h2"},
			TokenStatus: policy.TokenValid, Tokens: []policy.Token{{Issuer: "i"}},
			Time: time.Unix(1700000000, 123),
		},
		Decision: &policy.Decision{
			Verdict: policy.Deny, Tier: policy.ServiceDeny, Reason: "no",
			Rules:    []policy.Rule{{ID: "web-reads", File: "web.rego", Line: 12}, {ID: "other"}},
			Revision: policy.Revision{Epoch: 1, Number: 300, Digest: [32]byte{9}},
		},
		Reads: &policy.Reads{
			Headers: []string{"x-team", "authorization", "x-other", "x-big", "x-trace", "x-note", "x-bad", "x-absent"},
			Query:   []string{"page", "access_token"},
		},
	}
}

func wantSample() *auditv1.Event {
	digest := [32]byte{9}
	return &auditv1.Event{
		Schema: 1, Kind: auditv1.Kind_KIND_DECISION, Time: 1700000000000000123, Outcome: auditv1.Outcome_OUTCOME_DENY,
		Mode: auditv1.Mode_MODE_ENFORCE, Enforced: true, Direction: "inbound", Layer: "request",
		Source:      &auditv1.Source{Id: "spiffe://example.org/svc/a", TrustDomain: "example.org", Path: "/svc/a", Authn: "mtls", Serial: []byte{1, 2, 3}},
		Destination: &auditv1.Destination{Service: "web", Id: "spiffe://example.org/svc/web", Port: 8443},
		Request: &auditv1.Request{
			Protocol: "http", Method: "GET", Host: "web.example.org", Path: "/v1/" + strings.Repeat("x", 200),
			Headers: []*auditv1.Field{{Name: "x-team", Values: []string{"red", "blue"}}}, Query: []*auditv1.Field{{Name: "page", Values: []string{"2"}}},
			ContentLength: -1,
		},
		Connection:  &auditv1.Connection{PeerIp: "10.0.0.1", PeerPort: 40000, ClientIp: "10.0.0.1", TlsVersion: "1.3", Sni: "web", Alpn: "h2", KeyExchange: "X25519MLKEM768"},
		TokenStatus: "valid", Tier: auditv1.Tier_TIER_SERVICE_DENY,
		Rules:    []*auditv1.Rule{{Id: "web-reads", File: "web.rego", Line: 12}, {Id: "other"}},
		Revision: &auditv1.Revision{Epoch: 1, Number: 300, Digest: digest[:]},
		Reason:   "no", TraceId: "0af7651916cd43dd8448eb211c80319c", Latency: 1234,
		Omitted:  []string{"headers.authorization", "headers.x-other", "headers.x-big", "headers.x-trace", "headers.x-note", "headers.x-bad", "query.access_token", "tokens"},
		Sequence: 77,
	}
}

func permit(t testing.TB, headers, query []string) *Permit {
	t.Helper()
	p, err := NewPermit(headers, query)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func encode(e *Encoder, ev *Event, sequence uint64) []byte {
	return AppendSequence(e.Append(nil, ev), sequence)
}

func unmarshal(t testing.TB, b []byte) *auditv1.Event {
	t.Helper()
	got := new(auditv1.Event)
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	return got
}

// canonical checks that b is, byte for byte, what protobuf writes.
func canonical(t testing.TB, b []byte) {
	t.Helper()
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(unmarshal(t, b))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("encoded\n%x\nprotobuf writes\n%x", b, want)
	}
}

func TestEncodeDecision(t *testing.T) {
	e := NewEncoder(permit(t, []string{"x-team", "x-b*", "x-trace", "x-note"}, []string{"*"}))
	b := encode(e, sample(), 77)
	canonical(t, b)
	if diff := cmp.Diff(wantSample(), unmarshal(t, b), protocmp.Transform()); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if n, ok := SequenceOf(b); !ok || n != 77 {
		t.Errorf("SequenceOf: %d, %v", n, ok)
	}
	if k := KindOf(b); k != auditv1.Kind_KIND_DECISION {
		t.Errorf("KindOf: %v", k)
	}
	for _, secret := range []string{"dXNlcjpwYXNz", "abcdef", "eyJ", "secret"} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%q is in the record", secret)
		}
	}
}

func TestEncodeOther(t *testing.T) {
	gap := &auditv1.Gap{FirstSequence: 3, Count: 4, Cause: GapDrop, Signature: []byte{1}, Certificates: [][]byte{{2}, bytes.Repeat([]byte{3}, 300)}}
	action := &auditv1.Action{
		Verb: "pushed", Actor: "unix:uid:1000", Object: "policy", ObjectId: "7",
		Details: []*auditv1.Field{{Name: "digest", Values: []string{"", strings.Repeat("d", 300)}}},
	}
	b := encode(NewEncoder(nil), &Event{Kind: auditv1.Kind_KIND_POLICY, Reason: "why", Gap: gap, Action: action}, 1)
	canonical(t, b)
	want := &auditv1.Event{Schema: 1, Kind: auditv1.Kind_KIND_POLICY, Reason: "why", Gap: gap, Action: action, Sequence: 1}
	if diff := cmp.Diff(want, unmarshal(t, b), protocmp.Transform()); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

// An event of a connection holds no request, whatever is left in the Input.
func TestEncodeConnection(t *testing.T) {
	ev := sample()
	ev.Input.Layer = policy.LayerConnection
	got := unmarshal(t, encode(NewEncoder(nil), ev, 1))
	if got.Request != nil {
		t.Errorf("request %v, want none", got.Request)
	}
}

// Where policy walks all headers, only those permitted are recorded, and that
// others were withheld is said without naming them.
func TestEncodeAll(t *testing.T) {
	ev := sample()
	ev.Reads = &policy.Reads{AllHeaders: true, AllQuery: true}
	got := unmarshal(t, encode(NewEncoder(permit(t, []string{"*"}, []string{"page"})), ev, 1))
	var names []string
	for _, f := range got.Request.Headers {
		names = append(names, f.Name)
	}
	if diff := cmp.Diff([]string{"x-other", "x-team"}, names); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"headers", "query", "tokens"}, got.Omitted); diff != "" {
		t.Errorf("omitted (-want +got):\n%s", diff)
	}
}

// The largest event that an Encoder writes fits in a record.
func TestEncodeBounds(t *testing.T) {
	ev := sample()
	long := strings.Repeat("\u00e4\xff", 40<<10)
	in := ev.Input
	in.Source.ID, in.Source.Path, in.Destination.ID, in.Request.Path = long, long, long, long
	in.Source.Serial = []byte(long)
	for _, s := range []*string{&in.Direction, &in.Request.Method, &in.Request.Host, &in.Destination.Service, &in.Connection.SNI, &in.Connection.ALPN, &ev.TraceID, &ev.Decision.Reason} {
		*s = long
	}
	headers := policy.MapValues{}
	ev.Reads.Headers = nil
	for i := range 200 {
		name := fmt.Sprintf("x-%0400d", i)
		headers[name] = []string{strings.Repeat("v", 500)}
		ev.Reads.Headers = append(ev.Reads.Headers, name)
	}
	in.Request.Headers = headers
	ev.Decision.Rules = slices.Repeat([]policy.Rule{{ID: long, File: long, Line: 1}}, 100)
	b := encode(NewEncoder(permit(t, []string{"x-*"}, nil)), ev, 1)
	if len(b) > MaxEventBytes {
		t.Errorf("%d bytes, want at most %d", len(b), MaxEventBytes)
	}
	got := unmarshal(t, b)
	if !slices.Contains(got.Omitted, "path") || !slices.Contains(got.Omitted, "source.id") {
		t.Errorf("omitted %q lacks path and source.id", got.Omitted)
	}
	if n := len(got.Request.Path); n > maxPath || n < maxPath-4 {
		t.Errorf("path of %d bytes, want about %d", n, maxPath)
	}
}

func TestPermit(t *testing.T) {
	for _, bad := range []struct{ headers, query []string }{
		{headers: []string{"X-Upper"}}, {headers: []string{"authorization"}}, {headers: []string{"cookie"}}, {headers: []string{"a*b"}},
		{headers: []string{""}}, {query: []string{"access_token"}}, {query: []string{"Password"}},
	} {
		if _, err := NewPermit(bad.headers, bad.query); err == nil {
			t.Errorf("NewPermit(%q, %q): no error", bad.headers, bad.query)
		}
	}
	p := permit(t, []string{"*", "x-api-key"}, []string{"p*"})
	for name, want := range map[string]bool{
		"x-team": true, "authorization": false, "cookie": false, "x-auth-token": false, "x-api-key": true, "x-session-id": false, "proxy-authorization": false,
	} {
		if got := p.Header(name); got != want {
			t.Errorf("Header(%q): %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]bool{"page": true, "password": false, "PASSWORD": false, "q": false} {
		if got := p.Query(name); got != want {
			t.Errorf("Query(%q): %v, want %v", name, got, want)
		}
	}
	if (*Permit)(nil).Header("x") || (*Permit)(nil).Query("x") {
		t.Error("nil Permit permits")
	}
}

func TestEncodeAllocates(t *testing.T) {
	e := NewEncoder(permit(t, []string{"x-team"}, []string{"page"}))
	ev := sample()
	buf := make([]byte, 0, MaxEventBytes)
	e.Append(buf, ev)
	if n := testing.AllocsPerRun(100, func() { e.Append(buf, ev) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// FuzzEncode holds the encoder to protobuf: whatever comes in, what is written
// is canonical, within bounds, and the text that protobuf reads back is the
// text that went in where nothing was omitted.
func FuzzEncode(f *testing.F) {
	f.Add("GET", "/a", "host", "x-a", "v", []byte{1}, int64(-1), uint64(1))
	f.Add("\xff", strings.Repeat("/a", 9000), "", "authorization", "eyJ.a.b", []byte{}, int64(5), uint64(1<<63))
	f.Fuzz(func(t *testing.T, method, path, host, name, value string, serial []byte, length int64, n uint64) {
		n = max(n, 1)
		r := rand.New(rand.NewPCG(n, 1))
		ev := &Event{
			Kind: auditv1.Kind(r.IntN(9)), Time: time.Unix(0, int64(n)), Outcome: auditv1.Outcome(r.IntN(8)), Mode: policy.Mode(r.IntN(3)),
			TraceID: value, Latency: time.Duration(length),
			Input: &policy.Input{
				Layer: policy.LayerRequest, Source: policy.Source{ID: host, Serial: serial},
				Request: policy.Request{Method: method, Path: path, Host: host, ContentLength: length, Headers: policy.MapValues{name: {value, host}}, Query: policy.MapValues{name: {value}}},
			},
			Reads: &policy.Reads{Headers: []string{name}, AllQuery: true},
		}
		if r.IntN(2) == 0 {
			ev.Decision = &policy.Decision{Tier: policy.Tier(r.IntN(8)), Reason: path, Rules: []policy.Rule{{ID: name, File: path, Line: int(int32(n))}}, Revision: policy.Revision{Number: n}}
		}
		b := encode(NewEncoder(permit(t, []string{"*"}, []string{"*"})), ev, n)
		canonical(t, b)
		if len(b) > MaxEventBytes {
			t.Fatalf("%d bytes", len(b))
		}
		got := unmarshal(t, b)
		if !utf8.ValidString(got.Request.Path) || got.Sequence != n {
			t.Fatal("path or sequence")
		}
		if !slices.Contains(got.Omitted, "path") && got.Request.Path != path {
			t.Errorf("path %q, want %q", got.Request.Path, path)
		}
		if !slices.Contains(got.Omitted, "method") && got.Request.Method != method {
			t.Errorf("method %q, want %q", got.Request.Method, method)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	e := NewEncoder(permit(b, []string{"x-team"}, []string{"page"}))
	ev := sample()
	ev.Input.Request.Path = "/v1/orders/1234"
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = e.Append(buf[:0], ev)
	}
	b.SetBytes(int64(len(buf)))
}

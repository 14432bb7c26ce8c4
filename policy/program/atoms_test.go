package program

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
)

// full has something in every field.
func full() *policy.Input {
	return &policy.Input{
		Direction: "inbound", Layer: policy.LayerRequest, TokenStatus: "valid", Time: time.Unix(0, 1234),
		Source:      policy.Source{ID: "spiffe://td/svc/a", TrustDomain: "td", Path: "/svc/a", Authn: "mtls"},
		Destination: policy.Destination{Service: "shop", ID: "spiffe://td/svc/shop", Port: 8443},
		Request: policy.Request{
			Protocol: policy.GRPC, Method: "POST", Host: "Shop.example", Path: "/pkg.Orders/Get", Segments: []string{"pkg.Orders", "Get"},
			Query:       policy.MapValues{"q": {"1", "2"}, "empty": {}},
			Headers:     policy.MapValues{"x-team": {"red", "blue"}, "empty": {}},
			GRPCService: "pkg.Orders", GRPCMethod: "Get", ContentLength: 7,
		},
		Connection: policy.Connection{PeerIP: "10.0.0.1", ClientIP: "192.0.2.1", TLSVersion: "1.3", SNI: "sni", ALPN: "h2"},
		Tokens: []policy.Token{
			{Issuer: "other", Subject: "nobody"},
			{Issuer: "iss", Subject: "sub", Actor: "act", Audience: []string{"x", "y"}, Claims: map[string]any{
				"role": "admin", "groups": []any{"g1", "g2"}, "deep": map[string]any{"er": "bottom"},
				"yes": true, "no": false, "n": 1.5, "nil": nil, "mixed": []any{"s", 1.0}, "none": []any{},
			}},
		},
	}
}

// holds reports whether a clause of these atoms alone holds.
func holds(t *testing.T, in *policy.Input, atoms ...Atom) bool {
	t.Helper()
	var out policy.Decision
	if !decideAlone(t, in, &out, atoms...) {
		t.Fatal("asked")
	}
	return out.Tier == policy.ServiceAllow
}

func decideAlone(t *testing.T, in *policy.Input, out *policy.Decision, atoms ...Atom) bool {
	t.Helper()
	u := Unit{Service: "shop"}
	u.Clauses[policy.ServiceAllow] = []Clause{{Atoms: atoms}}
	e, err := New(&Program{Rules: []policy.Rule{{ID: "r"}}, Units: []Unit{u}})
	if err != nil {
		t.Fatal(err)
	}
	return e.Decide(in, out)
}

func equal(texts ...string) []Pred { return []Pred{{Op: Equal, Texts: texts}} }

func between(low, high int64) []Pred { return []Pred{{Op: Range, Low: low, High: high}} }

func TestFields(t *testing.T) {
	covered := map[Base]bool{}
	for _, tc := range []struct {
		field Field
		text  string
		// onRequest is whether the field is of a request, absent otherwise.
		onRequest bool
	}{
		{Field{Base: Direction}, "inbound", false},
		{Field{Base: Layer}, "request", false},
		{Field{Base: Weekday, Index: OffsetUTC}, "Thursday", false}, // 1970-01-01
		{Field{Base: Weekday, Index: OffsetUTC - 1}, "Wednesday", false},
		{Field{Base: SourceID}, "spiffe://td/svc/a", false},
		{Field{Base: SourceTrustDomain}, "td", false},
		{Field{Base: SourcePath}, "/svc/a", false},
		{Field{Base: SourceAuthn}, "mtls", false},
		{Field{Base: DestinationService}, "shop", false},
		{Field{Base: DestinationID}, "spiffe://td/svc/shop", false},
		{Field{Base: Protocol}, "grpc", true},
		{Field{Base: Method}, "POST", true},
		{Field{Base: Host}, "Shop.example", true},
		{Field{Base: Path}, "/pkg.Orders/Get", true},
		{Field{Base: Segment, Index: 1}, "Get", true},
		{Field{Base: Segment, Index: Any}, "Get", true},
		{Field{Base: Header, Name: "x-team"}, "red", true},
		{Field{Base: Header, Name: "x-team", Index: 1}, "blue", true},
		{Field{Base: Header, Name: "x-team", Index: Any}, "blue", true},
		{Field{Base: Query, Name: "q"}, "1", true},
		{Field{Base: Query, Name: "q", Index: Any}, "2", true},
		{Field{Base: GRPCService}, "pkg.Orders", true},
		{Field{Base: GRPCMethod}, "Get", true},
		{Field{Base: PeerIP}, "10.0.0.1", false},
		{Field{Base: ClientIP}, "192.0.2.1", false},
		{Field{Base: TLSVersion}, "1.3", false},
		{Field{Base: SNI}, "sni", false},
		{Field{Base: ALPN}, "h2", false},
		{Field{Base: TokenStatus}, "valid", false},
		{Field{Base: TokenIssuer}, "iss", false},
		{Field{Base: TokenSubject}, "sub", false},
		{Field{Base: TokenActor}, "act", false},
		{Field{Base: TokenAudience}, "x", false},
		{Field{Base: TokenAudience, Index: Any}, "y", false},
		{Field{Base: TokenClaim, Name: "role"}, "admin", false},
		{Field{Base: TokenClaim, Name: "deep\x00er"}, "bottom", false},
		{Field{Base: TokenClaimItem, Name: "groups", Index: 1}, "g2", false},
		{Field{Base: TokenClaimItem, Name: "groups", Index: Any}, "g2", false},
		{Field{Base: TokenClaimItem, Name: "mixed"}, "s", false},
		{Field{Base: TokenClaimKind, Name: "role"}, "string", false},
		{Field{Base: TokenClaimKind, Name: "groups"}, "strings", false},
		{Field{Base: TokenClaimKind, Name: "none"}, "strings", false},
		{Field{Base: TokenClaimKind, Name: "mixed"}, "array", false},
		{Field{Base: TokenClaimKind, Name: "deep"}, "object", false},
		{Field{Base: TokenClaimKind, Name: "yes"}, "true", false},
		{Field{Base: TokenClaimKind, Name: "no"}, "false", false},
		{Field{Base: TokenClaimKind, Name: "n"}, "number", false},
		{Field{Base: TokenClaimKind, Name: "nil"}, "null", false},
	} {
		covered[tc.field.Base] = true
		place := func(a Atom) Atom {
			if ofToken(tc.field.Base) {
				return Atom{Token: []Atom{a}}
			}
			return a
		}
		in := full()
		if !holds(t, in, place(Atom{Field: tc.field, Preds: equal(tc.text)})) {
			t.Errorf("%v %+v is not %q", tc.field.Base, tc.field, tc.text)
		}
		if holds(t, in, place(Atom{Field: tc.field, Preds: equal("something else")})) {
			t.Errorf("%v %+v is anything", tc.field.Base, tc.field)
		}
		if !holds(t, in, place(Atom{Field: tc.field})) {
			t.Errorf("%v %+v is absent", tc.field.Base, tc.field)
		}
		in.Layer = policy.LayerConnection
		if there := holds(t, in, place(Atom{Field: tc.field})); there == tc.onRequest {
			t.Errorf("%v at layer connection: %v", tc.field.Base, there)
		}
		if tc.onRequest && !holds(t, in, Atom{Field: tc.field, Not: true, Preds: equal(tc.text)}) {
			t.Errorf("%v at layer connection: its negation fails", tc.field.Base)
		}
	}
	for _, tc := range []struct {
		field     Field
		number    int64
		onRequest bool
	}{
		{Field{Base: DestinationPort}, 8443, false},
		{Field{Base: SegmentCount}, 2, true},
		{Field{Base: HeaderCount, Name: "x-team"}, 2, true},
		{Field{Base: HeaderCount, Name: "empty"}, 0, true},
		{Field{Base: QueryCount, Name: "q"}, 2, true},
		{Field{Base: ContentLength}, 7, true},
		{Field{Base: Time}, 1234, false},
		{Field{Base: SecondOfDay, Index: OffsetUTC + 330}, 5*3600 + 30*60, false},
		{Field{Base: SecondOfDay, Index: OffsetUTC - 1}, 24*3600 - 60, false},
	} {
		covered[tc.field.Base] = true
		in := full()
		if !holds(t, in, Atom{Field: tc.field, Preds: between(tc.number, tc.number)}) {
			t.Errorf("%v is not %d", tc.field.Base, tc.number)
		}
		if holds(t, in, Atom{Field: tc.field, Preds: between(tc.number+1, tc.number+9)}) {
			t.Errorf("%v is more than %d", tc.field.Base, tc.number)
		}
		in.Layer = policy.LayerConnection
		if there := holds(t, in, Atom{Field: tc.field}); there == tc.onRequest {
			t.Errorf("%v at layer connection: %v", tc.field.Base, there)
		}
	}
	covered[Segments] = true // TestPredicates
	for b := Base(1); b < endBase; b++ {
		if !covered[b] {
			t.Errorf("nothing tests %v", b)
		}
	}
}

func TestAbsentFields(t *testing.T) {
	in := full()
	in.Request.Protocol, in.TokenStatus = policy.HTTP, ""
	for _, f := range []Field{
		{Base: GRPCService}, {Base: GRPCMethod},
		{Base: Segment, Index: 2},
		{Base: Header, Name: "none"}, {Base: HeaderCount, Name: "none"}, {Base: Header, Name: "x-team", Index: 2},
		{Base: Header, Name: "none", Index: Any}, {Base: Header, Name: "empty", Index: Any}, {Base: Header, Name: "empty"},
		{Base: Query, Name: "none"}, {Base: QueryCount, Name: "none"}, {Base: Query, Name: "empty"},
		{Base: Host, Via: []Step{{Kind: SplitElement, Text: ".", Index: 2}}},
	} {
		if holds(t, in, Atom{Field: f}) {
			t.Errorf("%v %+v has a value", f.Base, f)
		}
		if !holds(t, in, Atom{Field: f, Not: true}) {
			t.Errorf("%v %+v: its negation fails", f.Base, f)
		}
	}
	if !holds(t, in, Atom{Field: Field{Base: TokenStatus}, Preds: equal("absent")}) {
		t.Error("an empty token status is not absent")
	}
	in.Request.Headers, in.Request.Query = nil, nil
	for _, f := range []Field{{Base: Header, Name: "x-team"}, {Base: Query, Name: "q", Index: Any}, {Base: QueryCount, Name: "q"}} {
		if holds(t, in, Atom{Field: f}) {
			t.Errorf("%v has a value, and there are none", f.Base)
		}
	}
	for _, f := range []Field{
		{Base: TokenClaim, Name: "missing"}, {Base: TokenClaim, Name: "role\x00inner"}, {Base: TokenClaim, Name: "groups\x000"},
		{Base: TokenClaimItem, Name: "groups", Index: 2}, {Base: TokenClaimItem, Name: "none\x00at"}, {Base: TokenAudience, Index: 2},
	} {
		if holds(t, in, Atom{Token: []Atom{{Field: f}}}) {
			t.Errorf("%v %+v has a value", f.Base, f)
		}
	}
}

func TestTokens(t *testing.T) {
	subject := func(s string) Atom { return Atom{Field: Field{Base: TokenSubject}, Preds: equal(s)} }
	issuer := func(s string) Atom { return Atom{Field: Field{Base: TokenIssuer}, Preds: equal(s)} }
	in := full()
	if !holds(t, in, Atom{Token: []Atom{subject("sub"), issuer("iss")}}) {
		t.Error("one token has both, and they do not hold")
	}
	if holds(t, in, Atom{Token: []Atom{subject("nobody"), issuer("iss")}}) {
		t.Error("no one token has both, and they hold")
	}
	if !holds(t, in, Atom{Token: []Atom{subject("nobody")}}, Atom{Token: []Atom{issuer("iss")}}) {
		t.Error("each of two tokens has one, and they do not hold")
	}
	if !holds(t, in, Atom{Not: true, Token: []Atom{subject("nobody"), issuer("iss")}}) {
		t.Error("no token has both, and `not` does not hold")
	}
	not := subject("nobody")
	not.Not = true
	if !holds(t, in, Atom{Token: []Atom{not}}) {
		t.Error("some token is not nobody's")
	}
	in.Source.ID = "sub"
	if !holds(t, in, Atom{Token: []Atom{{Field: Field{Base: TokenSubject}, Preds: []Pred{{Op: EqualField, Other: &Field{Base: SourceID}}}}}}) {
		t.Error("a token's subject is the source, and this is not seen")
	}
	in.Tokens = nil
	if holds(t, in, Atom{Token: []Atom{not}}) {
		t.Error("there is no token, and one meets a condition")
	}
}

func TestPredicates(t *testing.T) {
	glob := func(s string) []string { return []string{s} }
	for _, tc := range []struct {
		op    Op
		texts []string
		value string
		want  bool
	}{
		{Equal, []string{"a", "b"}, "b", true},
		{Equal, []string{"a", "b"}, "B", false},
		{Equal, []string{"1", "2", "3", "4", "5", "6", "7", "8"}, "8", true},
		{Equal, []string{"1", "2", "3", "4", "5", "6", "7", "8"}, "9", false},
		{Equal, []string{""}, "", true},
		{Prefix, []string{"x", "ab"}, "abc", true},
		{Prefix, []string{"abc"}, "ab", false},
		{Prefix, []string{""}, "", true},
		{Suffix, []string{"x", "bc"}, "abc", true},
		{Suffix, []string{"abc"}, "bc", false},
		{Contains, []string{"x", "b"}, "abc", true},
		{Contains, []string{"ac"}, "abc", false},
		{Glob, glob("\x00*.b"), "a.a.b", true},
		{Glob, glob(".\x00*.b"), "a.b", true},
		{Glob, glob(".\x00*.b"), "a.a.b", false},
		{Glob, glob(".\x00**.b"), "a.a.b", true},
		{Glob, glob("/\x00/my-service/*"), "/my-service/x", true},
		{Glob, glob("/\x00/my-service/*"), "/my-service/x/y", false},
		{Glob, glob("\x00[a-c]x,y"), "bx,y", true},
		{Regex, []string{"^a+$"}, "aaa", true},
		{Regex, []string{"^a+$"}, "aab", false},
		{Regex, []string{"b"}, "abc", true},
		{Regex, []string{"(?i)^AB"}, "abc", true},
		{Regex, []string{"^a|b"}, "xb", true},
		{Regex, []string{"(?m)^b"}, "a\nb", true},
		{CIDR, []string{"10.0.0.0/8"}, "10.9.9.9", true},
		{CIDR, []string{"192.0.2.0/24", "10.0.0.0/8"}, "10.9.9.9", true},
		{CIDR, []string{"10.0.0.0/8"}, "11.0.0.1", false},
		{CIDR, []string{"10.0.0.0/8"}, "::ffff:10.0.0.1", true},
		{CIDR, []string{"::ffff:10.0.0.0/104"}, "10.0.0.1", true},
		{CIDR, []string{"::/0"}, "10.0.0.1", false},
		{CIDR, []string{"::/0"}, "fe80::1", true},
		{CIDR, []string{"fe80::/10"}, "fe80::1%eth0", false},
		{CIDR, []string{"10.0.0.0/8"}, "10.0.0.0/8", false},
		{CIDR, []string{"0.0.0.0/0"}, "", false},
		{Address, nil, "10.0.0.1", true},
		{Address, nil, "10.0.0.01", false},
		{Address, nil, "fe80::1%eth0", false},
		{Address, nil, "", false},
	} {
		in := full()
		in.Connection.SNI, in.Request.Headers = tc.value, policy.MapValues{"h": {"\u2026", tc.value}}
		for _, f := range []Field{{Base: SNI}, {Base: Header, Name: "h", Index: Any}} {
			atom := Atom{Field: f, Preds: []Pred{{Op: tc.op, Texts: tc.texts}}}
			if got := holds(t, in, atom); got != tc.want {
				t.Errorf("%v: %q %v %q is %v", f.Base, tc.value, tc.op, tc.texts, got)
			}
			atom.Not = true
			if got := holds(t, in, atom); got == tc.want {
				t.Errorf("%v: not %q %v %q is %v", f.Base, tc.value, tc.op, tc.texts, got)
			}
			atom.Not, atom.Preds[0].Not = false, true
			if got := holds(t, in, atom); got == tc.want && f.Base == SNI {
				t.Errorf("%v: %q other than %v %q is %v", f.Base, tc.value, tc.op, tc.texts, got)
			}
		}
	}
	in := full()
	for want, preds := range map[bool][]Pred{
		true:  {{Op: PathMatch, Texts: []string{"/x", "/pkg.*/{*}"}}},
		false: {{Op: PathMatch, Texts: []string{"/x", "/pkg.Orders"}}},
	} {
		if holds(t, in, Atom{Field: Field{Base: Segments}, Preds: preds}) != want {
			t.Errorf("%v is not %v", preds, want)
		}
	}
	team := Atom{Field: Field{Base: Header, Name: "x-team", Index: Any}}
	team.Preds = []Pred{{Op: Prefix, Texts: []string{"r"}}, {Op: Suffix, Texts: []string{"e"}}}
	if holds(t, in, team) {
		t.Error("no one value meets both, and they hold")
	}
	team.Preds[1].Not = true
	if !holds(t, in, team) {
		t.Error("red meets both, and they do not hold")
	}
	other := []Pred{{Op: EqualField, Other: &Field{Base: Host, Via: []Step{{Kind: Lower}, {Kind: SplitElement, Text: "."}}}}}
	if !holds(t, in, Atom{Field: Field{Base: DestinationService}, Preds: other}) {
		t.Error("the host begins with the service, and this is not seen")
	}
}

func TestSteps(t *testing.T) {
	covered := map[StepKind]bool{}
	for _, tc := range []struct {
		step     Step
		from, to string
	}{
		{Step{Kind: Lower}, "aBZ@[", "abz@["},
		{Step{Kind: Lower}, "ÄB", "äb"},
		{Step{Kind: Upper}, "abz`{", "ABZ`{"},
		{Step{Kind: Upper}, "ßa", "ßA"},
		{Step{Kind: TrimPrefix, Text: "ab"}, "abab", "ab"},
		{Step{Kind: TrimPrefix, Text: "x"}, "abab", "abab"},
		{Step{Kind: TrimSuffix, Text: "ab"}, "abab", "ab"},
		{Step{Kind: TrimSpace}, " \ta \n", "a"},
		{Step{Kind: Trim, Text: "ab"}, "bacab", "c"},
		{Step{Kind: TrimLeft, Text: "ab"}, "bacab", "cab"},
		{Step{Kind: TrimRight, Text: "ab"}, "bacab", "bac"},
		{Step{Kind: SplitElement, Text: ","}, "a,b", "a"},
		{Step{Kind: SplitElement, Text: ",", Index: 1}, "a,b,c", "b"},
		{Step{Kind: SplitElement, Text: ",", Index: 1}, "a,", ""},
		{Step{Kind: SplitElement, Text: ","}, "ab", "ab"},
		{Step{Kind: SplitElement, Text: ",", Index: Any}, "a,b,c", "c"},
	} {
		covered[tc.step.Kind] = true
		in := full()
		in.Connection.SNI = tc.from
		if !holds(t, in, Atom{Field: Field{Base: SNI, Via: []Step{tc.step}}, Preds: equal(tc.to)}) {
			t.Errorf("%+v of %q is not %q", tc.step, tc.from, tc.to)
		}
		if tc.step.Index != Any && holds(t, in, Atom{Field: Field{Base: SNI, Via: []Step{tc.step}}, Preds: []Pred{{Op: Equal, Texts: []string{tc.to}, Not: true}}}) {
			t.Errorf("%+v of %q is something else than %q, too", tc.step, tc.from, tc.to)
		}
	}
	for k := StepKind(1); k < endStep; k++ {
		if !covered[k] {
			t.Errorf("nothing tests step %d", k)
		}
	}
}

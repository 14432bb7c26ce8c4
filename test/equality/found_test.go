package equality

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
)

// TestFound holds policies that were once decided differently, with the input
// that showed it. Where OPA itself was wrong, want says what is right.
func TestFound(t *testing.T) {
	claims := func(c map[string]any) func(*policy.Input) {
		return func(in *policy.Input) {
			in.Tokens = []policy.Token{{Issuer: "https://idp.example.org", Audience: []string{"orders"}, Claims: c}}
		}
	}
	path := func(p string, segments ...string) func(*policy.Input) {
		return func(in *policy.Input) { in.Request.Path, in.Request.Segments = p, segments }
	}
	host := func(h string) func(*policy.Input) { return func(in *policy.Input) { in.Request.Host = h } }
	const rows = `{"ids": ["a"], "rows": [{"id": "a", "pat": "^/a"}, {"id": "b", "pat": "["}]}`

	for _, tt := range []struct {
		name, rego, data string
		change           func(*policy.Input)
		want             policy.Verdict
	}{
		{name: "a claim's name with a NUL is no path", change: claims(map[string]any{"a": map[string]any{"b": "x"}}), want: policy.Deny,
			rego: "allow contains \"x\" if {\n some t in input.tokens\n t.claims[\"a\\u0000b\"] == \"x\"\n}"},
		{name: "a claim's name with a NUL", change: claims(map[string]any{"a\x00b": "x"}), want: policy.Allow,
			rego: "allow contains \"x\" if {\n some t in input.tokens\n t.claims[\"a\\u0000b\"] == \"x\"\n}"},
		{name: "a claim without a name is not all claims", change: claims(map[string]any{"a": "b"}), want: policy.Deny,
			rego: "allow contains \"x\" if {\n some t in input.tokens\n t.claims[\"\"]\n}"},
		{name: "below a claim without a name", change: claims(map[string]any{"a": "b"}), want: policy.Deny,
			rego: "allow contains \"x\" if {\n some t in input.tokens\n t.claims[\"\"].a == \"b\"\n}"},
		{name: "a function's value that is a false claim", change: claims(map[string]any{"admin": false}), want: policy.Deny,
			rego: "allow contains \"x\" if {\n some t in input.tokens\n admin(t)\n}\n\nadmin(t) := t.claims.admin"},
		{name: "the opposite of a false claim", change: claims(map[string]any{"admin": false}), want: policy.Deny,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if {\n some t in input.tokens\n not admin(t)\n}\n\nadmin(t) := t.claims.admin"},
		{name: "a function with several places as its value", change: path("/a/a", "a", "a"), want: policy.Error,
			rego: "allow contains \"x\" if place(\"a\")\n\nplace(s) := i if {\n some i, v in input.request.segments\n v == s\n}"},
		{name: "a rule with several places as its value", change: path("/a/a", "a", "a"), want: policy.Error,
			rego: "allow contains \"x\" if of(place)\n\nof(_) := true\n\nplace := i if {\n some i, v in input.request.segments\n v == \"a\"\n}"},
		{name: "an error of a row that a comprehension does not ask for", data: rows, change: path("/a"), want: policy.Error,
			rego: "allow contains \"x\" if {\n some id in data.ids\n found := {v | some r in data.rows; r.id == id; v := regex.match(r.pat, input.request.path)}\n true in found\n}"},
		{name: "a star does not begin within an escape", change: path("/%25b", "%b"), want: policy.Allow,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if http.path(\"/*5b\")"},
		{name: "a slash in a segment is no F", change: path("/%2F", "/"), want: policy.Allow,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if http.path(\"/*F\")"},
		{name: "two globs with one name in OPA's cache", change: host("ab"), want: policy.Allow,
			rego: "allow contains \"x\" if glob.match(\"*\", [\"-\", \".\"], lower(input.request.host))\n\ndeny contains \"y\" if glob.match(\"*-\", [\".\"], lower(input.request.host))"},
		{name: "two globs with one name in OPA's cache, the other way round", change: host("ab-"), want: policy.Allow,
			rego: "allow contains \"x\" if glob.match(\"*-\", [\".\"], lower(input.request.host))\n\ndeny contains \"y\" if glob.match(\"*\", [\"-\", \".\"], lower(input.request.host))"},
		{name: "a backslash in a value before OPA's index", change: path(`/a\/secret`), want: policy.Deny,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if glob.match(\"/*/secret\", [\"/\"], input.request.path)"},
		{name: "a member that is not constant before OPA's index", change: host("GET"), want: policy.Deny,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if input.request.method in {input.request.host, \"PUT\"}"},
		{name: "a member that is not constant in a list", change: host("GET"), want: policy.Deny,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if input.request.method in [\"PUT\", input.request.host]"},
		{name: "a backslash in a glob before OPA's index", change: path("/a/*"), want: policy.Deny,
			rego: "allow contains \"y\"\n\ndeny contains \"x\" if glob.match(`/a/\\*`, [\"/\"], input.request.path)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := tt.data
			if data == "" {
				data = "{}"
			}
			p, err := newPair(t.Context(), content("-- writ/services/data.json --\n{\"orders\": {\"spiffe_ids\": [\"spiffe://example.org/svc/orders\"]}}\n"+
				"-- data.json --\n"+data+"\n-- orders.rego --\npackage services.orders\n\nimport data.writ.http\n\n"+tt.rego+"\n\nunused if http.reads\n"))
			if err != nil {
				t.Fatal(err)
			}
			in := &policy.Input{
				Direction: policy.Inbound, Layer: policy.LayerRequest,
				Source:      policy.Source{ID: "spiffe://example.org/svc/web", TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
				Destination: policy.Destination{Service: "orders", ID: "spiffe://example.org/svc/orders", Port: 443},
				Request:     policy.Request{Protocol: policy.HTTP, Method: "GET", Host: "orders", Path: "/"},
				TokenStatus: policy.TokenValid,
				Time:        time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC),
			}
			tt.change(in)
			var got, want policy.Decision
			if diff := p.compare(t.Context(), in, &got, &want); diff != "" {
				t.Errorf("topdown (-) and compiled (+) differ:\n%s\n%s", diff, reportText(p.report))
			}
			if want.Verdict != tt.want {
				t.Errorf("topdown: %v, want %v", want.Verdict, tt.want)
			}
		})
	}
}

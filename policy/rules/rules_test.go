package rules_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy/rules"
)

var catalogue = map[string][]string{"orders": {"example.org"}, "mixed": {"example.org", "other.org"}}

func build(t testing.TB, text string) *rules.Set {
	t.Helper()
	f, problems := rules.Parse("orders.rules.yaml", []byte(text))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	set, problems := rules.Build([]*rules.File{f}, catalogue)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return set
}

// TestData holds the normal form to its text: data.writ.rules is what the root
// rule and the compiler read.
func TestData(t *testing.T) {
	set := build(t, `
service: orders
owner: team-orders
rules:
  - id: web-reads
    action: allow
    from:
      - spiffe_ids: ["spiffe://example.org/svc/web"]
      - namespaces: [shop]
        not_cidrs: [10.9.0.0/16]
    to:
      - methods: [GET]
        paths: ["/orders/{*}"]
        ports: [8443, 8444, 9000-9001]
    expires: 2030-01-01
  - id: nobody
    action: deny
    from: any
    expires: 2030-01-01
`)
	got, err := json.MarshalIndent(set.Data()["services"], "", " ")
	if err != nil {
		t.Fatal(err)
	}
	compact := func(text string) string { return strings.Join(strings.Fields(text), "") }
	want := `{"orders": {
 "allow": {"web-reads": {
  "expires_ns": 1893456000000000000,
  "from": [
   [{"field": "source.id", "name": "", "not": false, "op": "in", "values": {"spiffe://example.org/svc/web": true}}],
   [{"field": "source.id", "name": "", "not": false, "op": "prefix", "values": ["spiffe://example.org/ns/shop/"]},
    {"field": "connection.peer_ip", "name": "", "not": false, "op": "outside", "values": ["10.9.0.0/16"]}]],
  "to": [
   [{"field": "layer", "name": "", "not": false, "op": "in", "values": {"request": true}},
    {"field": "request.method", "name": "", "not": false, "op": "in", "values": {"GET": true}},
    {"field": "request.segments", "name": "", "not": false, "op": "path", "values": [
      {"head": [{"is": "orders"}, {"one": true}], "open": false, "rest": false, "tail": [], "text": "/orders/{*}"}]},
    {"field": "destination.port", "name": "", "not": false, "op": "range", "values": [
      {"high": 8444, "low": 8443}, {"high": 9001, "low": 9000}]}]],
  "when": []}},
 "deny": {"nobody": {"from": [[]], "to": [[]], "when": []}}
}}`
	if diff := cmp.Diff(compact(want), compact(string(got))); diff != "" {
		t.Errorf("data (-want +got):\n%s", diff)
	}
	if got := set.Services["orders"][0].Owner; got != "team-orders" {
		t.Errorf("owner %q, want the file's", got)
	}
}

// TestExpiries lists what ends, the next first.
func TestExpiries(t *testing.T) {
	set := build(t, `
service: orders
rules:
  - {id: later, action: deny, from: any, expires: 2031-01-01, owner: ann, ticket: T-1}
  - {id: sooner, action: allow, from: any, expires: 2030-01-01T12:00:00+01:00}
  - {id: never, action: allow, from: any}
`)
	var got []string
	for _, e := range set.Expiries() {
		got = append(got, strings.Join([]string{e.Service, e.Action, e.Rule.ID, e.At.Format("2006-01-02T15:04Z"), e.Owner, e.Ticket}, " "))
	}
	want := []string{"orders allow sooner 2030-01-01T11:00Z  ", "orders deny later 2031-01-01T00:00Z ann T-1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("expiries (-want +got):\n%s", diff)
	}
}

// TestRefused is about files as a whole; problems of values are in
// policy/opa/testdata/problems.
func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		``:                        "want rules and the service",
		`service: orders`:         "want rules and the service",
		`rules: [{id: a}]`:        "want the service",
		`{service: a, rules: []}`: "rules: empty",
		`{service: a, guardrails: [{id: a, from: any}]}`:                                            "guardrails: are for all services",
		`{rules: [{id: a}], guardrails: [{id: a}]}`:                                                 "make two files",
		`{service: a, services: [b], rules: [{id: a, action: deny, from: any}]}`:                    "not both",
		`{services: [a, a], rules: [{id: a, action: deny, from: any}]}`:                             `"a" is there twice`,
		`{service: a/b, rules: [{id: a, action: deny, from: any}]}`:                                 "a name is made of",
		`{service: a, rules: [{id: a, action: deny, from: any}, {id: a, action: deny, from: any}]}`: "rules[1].id",
		`{service: a, rules: [{id: a, action: deny, from: all}]}`:                                   "want a list of sources, or the word any",
		`{service: a, rules: [{id: a, action: deny, from: []}]}`:                                    "from: any is everybody",
		`{service: a, rules: [{id: a, action: deny, from: any, to: []}]}`:                           "to: empty",
		`{service: a, rules: [{id: a, action: deny, from: any, to: [{}]}]}`:                         "is everything",
		`{service: a, rules: [{id: a, action: deny, from: any, overridable: true}]}`:                "is for guardrails only",
		`{service: a, rules: [{id: a, action: deny, from: any, expires: 1969-01-01}]}`:              "from 1971",
		`{service: a, rules: [&x {id: a, action: deny, from: any}]}`:                                "anchors",
		`{service: a, service: a, rules: [{id: a, action: deny, from: any}]}`:                       "given twice",
		`{service: a, rules: [{id: a, action: deny, from: any, from: any}]}`:                        "given twice",
		"{service: a, rules: [{id: a, action: deny, from: any}]}\n---\n{}":                          "second document",
		`{service: a, rules: [{id: a, action: allow, from: [{names: [w, w]}]}]}`:                    "there twice",
		`{service: a, rules: [{id: a, action: allow, from: [{claims: {}}]}]}`:                       "claims: empty",
		`{service: a, rules: [{id: a, action: allow, from: any, when: [{field: source.id}]}]}`:      "want what the field is held to",
		`{service: a, rules: [{id: a, action: allow, from: any, when: [{in: [x]}]}]}`:               "want one of field, time and window",
	} {
		_, problems := rules.Parse("x.rules.yaml", []byte(text))
		found := false
		for _, p := range problems {
			found = found || strings.Contains(p.Message, want) && p.Line > 0 && p.File == "x.rules.yaml"
		}
		if !found {
			t.Errorf("%s\ngives %v, want %q", text, problems, want)
		}
	}
}

// FuzzParse holds whatever is accepted to one normal form, which JSON keeps.
func FuzzParse(f *testing.F) {
	f.Add([]byte("service: orders\nrules:\n  - {id: a, action: allow, from: [{names: [web], claims: {r: [x]}}], to: [{paths: [\"/a/{**}/b*\"], hosts: [\"*.x\", y], ports: [1-2]}], expires: 2030-01-01}\n"))
	f.Add([]byte("service: orders\nrules:\n  - {id: a, action: deny, from: any, when: [{field: request.headers.x, glob: [\"a*b\"]}, {window: {from: \"08:00\", to: \"24:00\", zone: \"+01:30\"}}, {time: {after: 2030-01-01}}]}\n"))
	f.Add([]byte("guardrails:\n  - {id: a, overridable: true, from: [{not_client_cidrs: [10.0.0.0/8]}], to: [{not_grpc_methods: [\"Get*\"]}]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var forms [2]string
		for i := range forms {
			file, problems := rules.Parse("orders.rules.yaml", text)
			if (file == nil) != (len(problems) > 0) {
				t.Fatalf("file %v with problems %v", file, problems)
			}
			if file == nil {
				return
			}
			set, problems := rules.Build([]*rules.File{file}, catalogue)
			if len(problems) > 0 {
				return
			}
			written, err := json.Marshal(set.Data())
			if err != nil {
				t.Fatal(err)
			}
			dec := json.NewDecoder(strings.NewReader(string(written)))
			dec.UseNumber()
			var back map[string]any
			if err := dec.Decode(&back); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back, set.Data()) {
				t.Fatalf("data changes on its way through JSON:\n%s", cmp.Diff(set.Data(), back))
			}
			forms[i] = string(written)
		}
		if forms[0] != forms[1] {
			t.Fatalf("one text, two forms:\n%s\n%s", forms[0], forms[1])
		}
	})
}

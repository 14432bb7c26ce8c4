package opa_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/writ-dev/writ/policy/bundle"
)

// TestServicesSchema: the schema that editors read and the reader of the
// catalogue take and refuse the same.
func TestServicesSchema(t *testing.T) {
	text, err := os.ReadFile("../../rego/schemas/services.json")
	if err != nil {
		t.Fatal(err)
	}
	query, err := rego.New(rego.Query("data.x"), rego.Module("x.rego", "package x\n\nok if json.match_schema(input.doc, input.schema)[0]")).PrepareForEval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const files = `"files": {"spiffe_ids": ["spiffe://example.org/svc/files"]}`
	glass := func(change string) string {
		return `{"writ": {"services": {` + files + `}, "break_glass": {"a": {"service": "files", "source_ids": ["spiffe://example.org/svc/me"],
			"granted": "2030-01-01T12:00:00Z", "expires": "2030-01-01T12:30:00Z", "ticket": "T-1"` + change + `}}}}`
	}
	service := func(fields string) string { return `{"writ": {"services": {"files": {` + fields + `}}}}` }
	const ids = `"spiffe_ids": ["spiffe://example.org/svc/files"]`
	tests := []struct {
		name, doc string
		good      bool
	}{
		{"least", `{"writ": {"services": {` + files + `}}}`, true},
		{"data beside it", `{"writ": {"services": {` + files + `}}, "shop": 1}`, true},
		{"all keys", service(ids + `, "mode": "observe", "observe_until": "2030-01-01", "path": "allow-double-slash"`), true},
		{"no SPIFFE ID", service(`"mode": "enforce"`), false},
		{"empty list", service(`"spiffe_ids": []`), false},
		{"the same twice", service(`"spiffe_ids": ["spiffe://example.org/a", "spiffe://example.org/a"]`), false},
		{"a trust domain", service(`"spiffe_ids": ["spiffe://example.org"]`), false},
		{"not a SPIFFE ID", service(`"spiffe_ids": ["https://example.org/a"]`), false},
		{"unknown key", service(ids + `, "mod": "enforce"`), false},
		{"unknown mode", service(ids + `, "mode": "audit"`), false},
		{"unknown path", service(ids + `, "path": "lax"`), false},
		{"observe without an end", service(ids + `, "mode": "observe"`), false},
		{"an end without observe", service(ids + `, "observe_until": "2030-01-01"`), false},
		{"a name that is no segment", `{"writ": {"services": {"a/b": {` + ids + `}}}}`, false},
		{"glass", glass(`, "approvers": ["ann", "bob"]`), true},
		{"glass of one", glass(`, "approvers": ["ann"]`), false},
		{"glass of nobody", glass(``), false},
		{"glass with an unknown key", glass(`, "approvers": ["ann", "bob"], "why": "x"`), false},
		{"outside", `{"writ": {"outside": {"http.send": {"hosts": ["risk.example.org", "risk.example.org:8443", "*.example.org", "http://127.0.0.1:8181", "[::1]:443"],
			"timeout": "1.5s", "max_bytes": 1048576, "max_calls": 16}, "net.lookup_ip_addr": {"hosts": ["*.example.org", "::1"], "timeout": "20ms", "max_calls": 1},
			"opa.runtime": {"env": ["REGION"]}}}}`, true},
		{"least outside", `{"writ": {"outside": {"http.send": {"hosts": ["risk.example.org"]}, "opa.runtime": {}}}}`, true},
		{"another builtin", `{"writ": {"outside": {"rand.intn": {}}}}`, false},
		{"no hosts", `{"writ": {"outside": {"http.send": {}}}}`, false},
		{"an empty list of hosts", `{"writ": {"outside": {"http.send": {"hosts": []}}}}`, false},
		{"a host twice", `{"writ": {"outside": {"http.send": {"hosts": ["a.example.org", "a.example.org"]}}}}`, false},
		{"every host", `{"writ": {"outside": {"http.send": {"hosts": ["*"]}}}}`, false},
		{"a path", `{"writ": {"outside": {"http.send": {"hosts": ["risk.example.org/v1"]}}}}`, false},
		{"another scheme", `{"writ": {"outside": {"http.send": {"hosts": ["ftp://risk.example.org"]}}}}`, false},
		{"a time without a unit", `{"writ": {"outside": {"http.send": {"hosts": ["a.example.org"], "timeout": "200"}}}}`, false},
		{"a time that is a number", `{"writ": {"outside": {"http.send": {"hosts": ["a.example.org"], "timeout": 200}}}}`, false},
		{"too many bytes", `{"writ": {"outside": {"http.send": {"hosts": ["a.example.org"], "max_bytes": 1048577}}}}`, false},
		{"no calls", `{"writ": {"outside": {"http.send": {"hosts": ["a.example.org"], "max_calls": 0}}}}`, false},
		{"bytes of a name", `{"writ": {"outside": {"net.lookup_ip_addr": {"hosts": ["a.example.org"], "max_bytes": 1}}}}`, false},
		{"an origin to look up", `{"writ": {"outside": {"net.lookup_ip_addr": {"hosts": ["https://a.example.org"]}}}}`, false},
		{"our own environment", `{"writ": {"outside": {"opa.runtime": {"env": ["WRIT_KEY"]}}}}`, false},
		{"no name of a variable", `{"writ": {"outside": {"opa.runtime": {"env": ["A=B"]}}}}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var doc any
			if err := json.Unmarshal([]byte(tt.doc), &doc); err != nil {
				t.Fatal(err)
			}
			rs, err := query.Eval(t.Context(), rego.EvalInput(map[string]any{"doc": doc, "schema": string(text)}))
			if err != nil {
				t.Fatal(err)
			}
			_, matches := rs[0].Expressions[0].Value.(map[string]any)["ok"]
			c := bundle.Content{{Path: "data.json", Content: []byte(tt.doc)}}
			data, problems := c.Data()
			_, more := c.Catalogue(data)
			if read := len(problems)+len(more) == 0; matches != tt.good || read != tt.good {
				t.Errorf("schema: %v, reader: %v %v%v, want %v", matches, read, problems, more, tt.good)
			}
		})
	}
}

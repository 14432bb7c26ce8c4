package equality

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/test/cases"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

var update = flag.Bool("update", false, "write testdata/not-applicable.txt anew")

// errNotApplicable is why a conformance case says nothing about policy here.
type errNotApplicable string

func (e errNotApplicable) Error() string { return string(e) }

// TestConformanceCases takes OPA's own conformance cases as policy. A case asks
// for one value, data.generated.p most often; here a service's rules ask whether
// it is what OPA expects, whether it is defined, and whether it is not. Its
// input becomes the claims of a token, which is where anything may stand.
//
// testdata/not-applicable.txt lists the cases that cannot be asked so, each
// with its reason.
func TestConformanceCases(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/open-policy-agent/opa").Output()
	if err != nil {
		t.Fatal(err)
	}
	set := cases.MustLoad(filepath.Join(strings.TrimSpace(string(out)), "v1/test/cases/testdata/v1"))
	skipped := map[string][]string{}
	results := map[string]int{}
	applied, wrong := 0, 0
	for _, c := range set.Sorted().Cases {
		content, in, err := caseOf(c)
		var p *pair
		if err == nil {
			p, err = newPair(t.Context(), content)
		}
		var refused policy.Refused
		if errors.As(err, &refused) {
			err = errNotApplicable("refused here: " + kind(refused[0].Message))
		}
		var reason errNotApplicable
		if errors.As(err, &reason) {
			skipped[string(reason)] = append(skipped[string(reason)], c.Note)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.Note, err)
			continue
		}
		applied++
		for _, service := range p.report.Services {
			for _, rule := range service.Rules {
				results[rule.Result]++
			}
		}
		var got, want policy.Decision
		if diff := p.compare(t.Context(), in, &got, &want); diff != "" {
			t.Errorf("%s: topdown (-) and compiled (+) differ:\n%s\n%s", c.Note, diff, reportText(p.report))
		}
		if expected(c) && !slices.ContainsFunc(want.Rules, func(r policy.Rule) bool { return r.ID == "as-expected" }) {
			wrong++
			t.Logf("%s: topdown itself gives another value here: %v %s", c.Note, want.Rules, want.Reason)
		}
	}
	t.Logf("%d cases, %d apply, rules %v, %d whose value is another here", len(set.Cases), applied, results, wrong)
	var b strings.Builder
	b.WriteString("# Conformance cases of OPA that are not asked, by reason. Written by\n# go test ./test/equality -run Conformance -update\n")
	for _, reason := range slices.Sorted(maps.Keys(skipped)) {
		fmt.Fprintf(&b, "\n%s (%d):\n", reason, len(skipped[reason]))
		for _, note := range slices.Sorted(slices.Values(skipped[reason])) {
			fmt.Fprintf(&b, "  %s\n", note)
		}
	}
	file := filepath.Join("testdata", "not-applicable.txt")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Errorf("%s is not current: run the test with -update and read the difference", file)
	}
}

// expected reports whether the case expects a value that JSON can say.
func expected(c cases.TestCase) bool {
	return c.WantResult != nil && len(*c.WantResult) == 1 && c.WantErrorCode == nil && c.WantError == nil
}

var (
	names    = regexp.MustCompile("[\"`][^\"`]*[\"`]|[0-9]+")
	dataRefs = regexp.MustCompile(`data(\.[a-zA-Z_]\w*|\[[^\]]*\])+`)
)

// kind is a message without the names in it.
func kind(message string) string {
	message, _, _ = strings.Cut(message, "\n")
	if at := strings.Index(message, ": "); at > 60 {
		message = message[:at]
	}
	return dataRefs.ReplaceAllString(names.ReplaceAllString(message, "…"), "data.…")
}

// caseOf is the case as policy and input.
func caseOf(c cases.TestCase) (bundle.Content, *policy.Input, error) {
	value, err := asked(c)
	if err != nil {
		return nil, nil, err
	}
	in, err := inputOf(c)
	if err != nil {
		return nil, nil, err
	}
	var files bundle.Content
	for i, text := range c.Modules {
		module, err := moved(text)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, bundle.File{Path: fmt.Sprintf("module%d.rego", i), Content: []byte(module)})
	}
	data := map[string]any{}
	if c.Data != nil {
		maps.Copy(data, *c.Data)
	}
	if expected(c) {
		data["wanted"] = map[string]any{"value": (*c.WantResult)[0]["x"]}
	}
	data["writ"] = map[string]any{"services": map[string]any{"orders": map[string]any{"spiffe_ids": []string{"spiffe://example.org/svc/orders"}}}}
	doc, err := json.Marshal(data)
	if err != nil {
		return nil, nil, err
	}
	rules := fmt.Sprintf(`package services.orders

# Functions, because the type checker knows that two sides can never be equal.
same(a, b) if a == b

same(a, b) if {
	is_set(a)
	a == {v | some v in b}
}

allow contains "as-expected" if same(%[1]s, data.wanted.value)

allow contains "true" if %[1]s

allow contains "not" if not %[1]s
`, value)
	files = append(files, bundle.File{Path: "data.json", Content: doc}, bundle.File{Path: "orders.rego", Content: []byte(rules)})
	slices.SortFunc(files, func(a, b bundle.File) int { return cmp.Compare(a.Path, b.Path) })
	return files, in, nil
}

// asked is the reference that the query of the case asks for.
func asked(c cases.TestCase) (ast.Ref, error) {
	if len(c.Modules) == 0 {
		return nil, errNotApplicable("the case is a query without a module")
	}
	if len(c.Env) > 0 {
		return nil, errNotApplicable("the case sets environment variables")
	}
	body, err := ast.ParseBodyWithOpts(c.Query, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err != nil || len(body) != 1 || !body[0].IsEquality() || body[0].Negated || len(body[0].With) > 0 {
		return nil, errNotApplicable("the query is not about one value")
	}
	ref, isRef := body[0].Operand(0).Value.(ast.Ref)
	_, isVar := body[0].Operand(1).Value.(ast.Var)
	if !isRef || !isVar || !ref.IsGround() || !ref[0].Equal(ast.DefaultRootDocument) || len(ref) < 2 {
		return nil, errNotApplicable("the query is not about one value")
	}
	return ref, nil
}

func inputOf(c cases.TestCase) (*policy.Input, error) {
	var doc any = map[string]any{}
	switch {
	case c.InputTerm != nil:
		term, err := ast.ParseTerm(*c.InputTerm)
		if err != nil {
			return nil, errNotApplicable("the input is not a value")
		}
		if doc, err = ast.JSON(term.Value); err != nil {
			return nil, errNotApplicable("the input is not JSON")
		}
	case c.Input != nil:
		doc = *c.Input
	}
	object, ok := doc.(map[string]any)
	if !ok {
		return nil, errNotApplicable("the input is not an object, as claims are")
	}
	return &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest,
		Source:      policy.Source{ID: ids[0], TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "orders", ID: "spiffe://example.org/svc/orders", Port: 8443},
		Request:     policy.Request{Protocol: policy.HTTP, Method: "GET", Host: "orders", Path: "/", ContentLength: 0},
		Tokens:      []policy.Token{{Issuer: "https://issuer.example", Claims: object}},
		TokenStatus: policy.TokenValid,
		Time:        instants[0],
	}, nil
}

// moved is a module that reads the claims of the token where it read input.
func moved(text string) (string, error) {
	m, err := ast.ParseModuleWithOpts("case.rego", text, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err != nil {
		return "", errNotApplicable("the module does not parse as Rego version 1")
	}
	replaced, read := false, false
	for _, imp := range m.Imports {
		if ref, ok := imp.Path.Value.(ast.Ref); ok && ref[0].Equal(ast.InputRootDocument) {
			return "", errNotApplicable("the module imports input")
		}
	}
	ast.WalkWiths(m, func(w *ast.With) bool {
		ref, ok := w.Target.Value.(ast.Ref)
		replaced = replaced || ok && ref[0].Equal(ast.InputRootDocument)
		return false
	})
	claims := ast.MustParseRef("input.tokens[0].claims")
	_, err = ast.Transform(transformer(func(x any) (any, error) {
		ref, ok := x.(ast.Ref)
		if !ok || !ref[0].Equal(ast.InputRootDocument) {
			return x, nil
		}
		read = true
		return claims.Concat(ref[1:]), nil
	}), m)
	if err != nil {
		return "", err
	}
	switch {
	case replaced:
		return "", errNotApplicable("the module replaces input by `with`")
	case !read:
		return text, nil
	}
	if again, err := ast.ParseModuleWithOpts("case.rego", m.String(), ast.ParserOptions{RegoVersion: ast.RegoV1}); err != nil || again == nil {
		return "", errNotApplicable("the module cannot be written out with another input")
	}
	return m.String(), nil
}

type transformer func(x any) (any, error)

func (f transformer) Transform(x any) (any, error) { return f(x) }

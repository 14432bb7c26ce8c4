package bundle_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// withRules is sources with YAML rules: for each service, for both, for all.
func withRules() bundle.Content {
	c := append(sources(),
		bundle.File{Path: "both.rules.yaml", Content: []byte("services: [orders, payments]\nrules:\n  - {id: both, action: allow, from: [{names: [web]}]}\n")},
		bundle.File{Path: "team/orders.rules.yaml", Content: []byte("service: orders\nrules:\n  - {id: own, action: deny, from: any}\n")},
		bundle.File{Path: "team/payments.rules.yaml", Content: []byte("service: payments\nrules:\n  - {id: own, action: deny, from: any}\n")},
		bundle.File{Path: "rules.yaml", Content: []byte("guardrails:\n  - {id: g, from: [{not_names: [web]}]}\n")},
	)
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}

func writtenRules(t *testing.T, c bundle.Content) map[string]any {
	t.Helper()
	data, problems := c.Data()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	writ, _ := data["writ"].(map[string]any)
	rules, _ := writ["rules"].(map[string]any)
	return rules
}

// TestSliceOfRules: a slice says of its service what the whole says, and
// nothing of others.
func TestSliceOfRules(t *testing.T) {
	key, keys := newKey(t)
	whole := writtenRules(t, withRules())
	cutter, err := bundle.NewCutter(withRules())
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://example.org/svc/orders")
	cut, err := cutter.Cut(bundle.SliceConfig{Revision: policy.Revision{Epoch: 1, Number: 1}, SPIFFEID: id})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := cut.Seal(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := bundle.OpenSlice(sealed, keys, id)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Content.File("team/payments.rules.yaml"); ok {
		t.Error("the slice holds the rules file of another service")
	}
	services, _ := whole["services"].(map[string]any)
	want := map[string]any{"guardrails": whole["guardrails"], "services": map[string]any{"orders": services["orders"]}}
	if diff := cmp.Diff(want, writtenRules(t, s.Content)); diff != "" {
		t.Errorf("rules of the slice (-whole +slice):\n%s", diff)
	}
}

// TestRulesAreSources: rules files are read from a directory, are part of the
// digest, and are covered by the signature.
func TestRulesAreSources(t *testing.T) {
	dir := t.TempDir()
	for _, f := range withRules() {
		path := filepath.Join(dir, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, f.Content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	read, err := bundle.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := read.File("team/orders.rules.yaml"); !ok || withRules().Digest() == sources().Digest() {
		t.Error("rules files are not part of the content")
	}
	key, keys := newKey(t)
	signatures, err := withRules().Sign(key, bundle.ScopeSources)
	if err != nil {
		t.Fatal(err)
	}
	changed := withRules()
	for i := range changed {
		if changed[i].Path == "rules.yaml" {
			changed[i].Content = append(changed[i].Content, "# \n"...)
		}
	}
	for want, content := range map[bool]bundle.Content{true: withRules(), false: changed} {
		a, err := bundle.ReadArchive(archive(t, content, signatures))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Verify(keys, bundle.ScopeSources); (err == nil) != want {
			t.Errorf("verified: %v, want %v", err, want)
		}
	}
}

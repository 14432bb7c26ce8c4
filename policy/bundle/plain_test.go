package bundle_test

import (
	"crypto/ecdsa"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// TestAnchorsAreRefused: on every way in, before a signature is looked at, and
// under every name that OPA reads as YAML.
func TestAnchorsAreRefused(t *testing.T) {
	key, keys := newKey(t)
	bomb := "a: &a " + strings.Repeat("x", 1<<10) + "\nb:\n" + strings.Repeat("- *a\n", 10)
	refused := func(t *testing.T, way string, err error, line int) {
		t.Helper()
		var r policy.Refused
		if !errors.As(err, &r) || r[0].Line != line || !strings.Contains(r[0].Message, "anchors and aliases") {
			t.Errorf("%s: got %v, want a refusal in line %d", way, err, line)
		}
	}
	for _, name := range []string{"data.yaml", "a/data.yml", "data.json", ".manifest"} {
		for text, line := range map[string]int{bomb: 1, "x: 1\ny: {k: [&a z]}\n": 2, "a: b\n<<: *a\n": 0, "&k k: v\n": 1} {
			t.Run(name, func(t *testing.T) {
				c := bundle.Content{{Path: name, Content: []byte(text)}}
				_, err := bundle.ReadArchive(archive(t, c, nil))
				if line == 0 { // An alias of nothing is no YAML.
					if err == nil {
						t.Error("an alias of nothing was read")
					}
					return
				}
				refused(t, "archive", err, line)
				dir := t.TempDir()
				if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				_, err = bundle.ReadDir(dir)
				refused(t, "directory", err, line)
				if name == "a/data.yml" {
					return // OPA hashes it by its bytes.
				}
				refused(t, "sign", signError(c, key), line)
				a, err := bundle.ReadArchive(archive(t, bundle.Content{}, sign(t, bundle.Content{}, key, bundle.ScopeSources)))
				if err != nil {
					t.Fatal(err)
				}
				a.Content = c
				_, err = a.Verify(keys, bundle.ScopeSources)
				refused(t, "verify", err, line)
			})
		}
	}
	if _, problems := (bundle.Content{{Path: "data.yaml", Content: []byte(bomb)}}).Data(); len(problems) != 1 {
		t.Errorf("data: %v", problems)
	}
}

func signError(c bundle.Content, key *ecdsa.PrivateKey) error {
	_, err := c.Sign(key, bundle.ScopeSources)
	return err
}

package bundle_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/rules"
)

func newKey(t testing.TB) (*ecdsa.PrivateKey, bundle.Keys) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.NewKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, keys
}

// sources is a policy for two services.
func sources() bundle.Content {
	return bundle.Content{
		{Path: "data.json", Content: []byte(`{
			"limits": {"max": 10.50},
			"writ": {
				"services": {
					"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]},
					"payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}
				},
				"break_glass": {
					"b1": {"service": "payments", "source_ids": ["spiffe://example.org/svc/web"], "granted": "2030-01-01T12:00:00Z",
						"expires": "2030-01-01T13:00:00Z", "approvers": ["ann", "bob"], "ticket": "T1"}
				}
			}
		}`)},
		{Path: "guard.rego", Content: []byte("package guardrails.g\n\ndeny := false\n")},
		{Path: "lib/shared.rego", Content: []byte("package lib\n\nx := 1\n")},
		{Path: "orders.rego", Content: []byte("package services[\"orders\"]\n\nallow contains \"reads\" if input.request.method == \"GET\"\n")},
		{Path: "orders_test.rego", Content: []byte("package orders_test\n\ntest_a if data.services.orders.allow\n")},
		{Path: "payments.rego", Content: []byte("package services.payments\n\nallow := true\n")},
	}
}

func archive(t testing.TB, c bundle.Content, signatures []byte) []byte {
	t.Helper()
	data, err := c.Archive(signatures)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sign(t testing.TB, c bundle.Content, key *ecdsa.PrivateKey, scope string) []byte {
	t.Helper()
	signatures, err := c.Sign(key, scope)
	if err != nil {
		t.Fatal(err)
	}
	return signatures
}

func TestArchiveRoundTrip(t *testing.T) {
	c := sources()
	data := archive(t, c, nil)
	if !bytes.Equal(data, archive(t, c, nil)) {
		t.Error("the same content gave different bytes")
	}
	got, err := bundle.ReadArchive(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got.Content); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	if got.Content.Digest() != c.Digest() {
		t.Error("digest changed")
	}
	moved := sources()
	moved[1].Path = "guard2.rego"
	if moved.Digest() == c.Digest() {
		t.Error("digest does not cover paths")
	}
}

func TestSignatures(t *testing.T) {
	key, keys := newKey(t)
	_, otherKeys := newKey(t)
	c := sources()
	signatures := sign(t, c, key, bundle.ScopeSources)
	change := func(i int, f bundle.File) bundle.Content {
		out := sources()
		out[i] = f
		return out
	}
	tests := []struct {
		name       string
		content    bundle.Content
		signatures []byte
		keys       bundle.Keys
		scope      string
		want       string
	}{
		{"good", c, signatures, keys, bundle.ScopeSources, ""},
		{"whitespace in data does not count", change(0, bundle.File{Path: "data.json", Content: append(sources()[0].Content, '\n')}), signatures, keys, bundle.ScopeSources, ""},
		{"unsigned", c, nil, keys, bundle.ScopeSources, "not signed"},
		{"other key", c, signatures, otherKeys, bundle.ScopeSources, "not trusted here"},
		{"other scope", c, signatures, keys, bundle.ScopeSlice, `is for scope ""`},
		{"changed rule", change(1, bundle.File{Path: "guard.rego", Content: []byte("package guardrails.g\n\ndeny := true\n")}), signatures, keys, bundle.ScopeSources, "digest mismatch"},
		{"changed data", change(0, bundle.File{Path: "data.json", Content: []byte(`{}`)}), signatures, keys, bundle.ScopeSources, "digest mismatch"},
		{"missing file", c[:5], signatures, keys, bundle.ScopeSources, "missing: [payments.rego]"},
		{"added file", append(sources(), bundle.File{Path: "z.rego", Content: []byte("package z")}), signatures, keys, bundle.ScopeSources, "z.rego is not covered"},
		{"two signatures", c, []byte(`{"signatures":["a","b"]}`), keys, bundle.ScopeSources, "not one signature"},
		{"plugin", c, []byte(`{"signatures":["a"],"plugin":"x"}`), keys, bundle.ScopeSources, "not one signature"},
		{"garbage", c, []byte(`{"signatures":["a.b.c"]}`), keys, bundle.ScopeSources, "signature of the bundle"},
		{"alg none", c, []byte(`{"signatures":["eyJhbGciOiJub25lIn0.e30."]}`), keys, bundle.ScopeSources, "signature of the bundle"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := bundle.ReadArchive(archive(t, tt.content, tt.signatures))
			if err != nil {
				t.Fatal(err)
			}
			id, err := a.Verify(tt.keys, tt.scope)
			switch {
			case tt.want == "" && (err != nil || tt.keys[id] == nil):
				t.Errorf("key %q, error %v", id, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

func publicPEM(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// TestOPAVerifies: OPA's own reader accepts what we sign, and we accept what
// OPA signs.
func TestOPAVerifies(t *testing.T) {
	key, keys := newKey(t)
	id, err := bundle.KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	c := sources()
	data := archive(t, c, sign(t, c, key, bundle.ScopeSources))
	config := opabundle.NewVerificationConfig(map[string]*opabundle.KeyConfig{id: {Key: string(publicPEM(t, key)), Algorithm: "ES256"}}, "", "", nil)
	if _, err := opabundle.NewReader(bytes.NewReader(data)).WithBundleVerificationConfig(config).Read(); err != nil {
		t.Errorf("OPA refuses our signature: %v", err)
	}

	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	_, strangers := newKey(t)
	several := maps.Clone(strangers)
	maps.Copy(several, keys)
	// What the key is called is its owner's choice, unless it is one of our ids.
	for name, trusted := range map[string]bool{id: true, "default": true, "": true, strings.Repeat("0", 32): false} {
		theirs, err := opabundle.NewReader(bytes.NewReader(archive(t, c, nil))).WithSkipBundleVerification(true).Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := theirs.GenerateSignature(opabundle.NewSigningConfig(private, "ES256", ""), name, false); err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if err := opabundle.NewWriter(&buf).Write(theirs); err != nil {
			t.Fatal(err)
		}
		a, err := bundle.ReadArchive(buf.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.Verify(several, bundle.ScopeSources); (err == nil && got == id) != trusted {
			t.Errorf("signed by OPA with key %q: %q, %v", name, got, err)
		}
		if _, err := a.Verify(strangers, bundle.ScopeSources); err == nil || !strings.Contains(err.Error(), "not trusted here") {
			t.Errorf("signed by OPA with key %q, and nobody trusts it: %v", name, err)
		}
	}
}

type entry struct {
	header  tar.Header
	content string
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		h := e.header
		h.Size = int64(len(e.content))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	zw.Close()
	return buf.Bytes()
}

func TestHostileArchives(t *testing.T) {
	file := func(name string) entry { return entry{tar.Header{Typeflag: tar.TypeReg, Name: name}, "package a"} }
	many := make([]entry, bundle.MaxFiles+1)
	for i := range many {
		many[i] = entry{tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("f%d.rego", i)}, ""}
	}
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"not gzip", []byte("PK\x03\x04"), "not a readable tar.gz"},
		{"cut off", tarOf(t, file("a.rego"))[:40], "not a readable tar.gz"},
		{"parent", tarOf(t, file("../a.rego")), "leads outside"},
		{"parent inside", tarOf(t, file("a/../../a.rego")), "leads outside"},
		{"absolute parent", tarOf(t, file("/../a.rego")), "leads outside"},
		{"not shortest", tarOf(t, file("a//b.rego")), "shortest form"},
		{"backslash", tarOf(t, file(`..\a.rego`)), "backslashes"},
		{"control", tarOf(t, file("a\nb.rego")), "control characters"},
		{"symlink", tarOf(t, entry{tar.Header{Typeflag: tar.TypeSymlink, Name: "a.rego", Linkname: "/etc/passwd"}, ""}), "only regular files"},
		{"hard link", tarOf(t, entry{tar.Header{Typeflag: tar.TypeLink, Name: "a.rego", Linkname: "b.rego"}, ""}), "only regular files"},
		{"device", tarOf(t, entry{tar.Header{Typeflag: tar.TypeChar, Name: "a.rego"}, ""}), "only regular files"},
		{"twice", tarOf(t, file("a.rego"), file("./a.rego")), "there twice"},
		{"foreign file", tarOf(t, file("policy.wasm")), "not part of a policy"},
		{"deep", tarOf(t, file(strings.Repeat("a/", 20)+"a.rego")), "deeper than"},
		{"long", tarOf(t, file(strings.Repeat("a", 300)+".rego")), "1 to 255 bytes"},
		{"too many", tarOf(t, many...), "more than 4096 files"},
		{"rules too large", tarOf(t, entry{tar.Header{Typeflag: tar.TypeReg, Name: "a.rules.yaml"}, strings.Repeat("#", rules.MaxFileBytes+1)}), "larger than 1048576 bytes"},
		{"too large", tarOf(t, entry{tar.Header{Typeflag: tar.TypeReg, Name: "a.rego"}, strings.Repeat("#", bundle.MaxFileBytes+1)}), "larger than"},
		{"empty name", tarOf(t, file("")), "want 1 to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bundle.ReadArchive(tt.data)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestReadDir(t *testing.T) {
	outside := t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(outside, "secret.rego", "package secret")
	dir := t.TempDir()
	write(dir, "b/data.yaml", "x: 1")
	write(dir, "a.rego", "package a")
	write(dir, "README.md", "not policy")
	write(dir, ".git/hook.rego", "package hook")
	write(dir, "..2030/c.rego", "package c")
	if err := os.Symlink("..2030/c.rego", filepath.Join(dir, "c.rego")); err != nil {
		t.Fatal(err)
	}
	c, err := bundle.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := bundle.Content{{Path: "a.rego", Content: []byte("package a")}, {Path: "b/data.yaml", Content: []byte("x: 1")}, {Path: "c.rego", Content: []byte("package c")}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	if err := os.Symlink(filepath.Join(outside, "secret.rego"), filepath.Join(dir, "out.rego")); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.ReadDir(dir); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("symlink out: %v", err)
	}
	if _, err := bundle.ReadDir(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there was read")
	}
}

var orders = spiffeid.RequireFromString("spiffe://example.org/svc/orders")

func cut(t testing.TB, id spiffeid.ID) *bundle.Slice {
	t.Helper()
	c := sources()
	cutter, err := bundle.NewCutter(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := cutter.Cut(bundle.SliceConfig{
		Revision:  policy.Revision{Epoch: 2, Number: 9, Digest: c.Digest()},
		Activated: time.Date(2030, 1, 1, 0, 0, 0, 123456789, time.UTC),
		SPIFFEID:  id,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSliceHoldsOnlyItsOwn(t *testing.T) {
	paths := func(c bundle.Content) (p []string) {
		for _, f := range c {
			p = append(p, f.Path)
		}
		return p
	}
	s := cut(t, orders)
	if diff := cmp.Diff([]string{"data.json", "guard.rego", "lib/shared.rego", "orders.rego"}, paths(s.Content)); diff != "" {
		t.Errorf("files of orders (-want +got):\n%s", diff)
	}
	data, _ := s.Content.File("data.json")
	var got any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"limits": map[string]any{"max": 10.5},
		"writ": map[string]any{
			"services":    map[string]any{"orders": map[string]any{"spiffe_ids": []any{"spiffe://example.org/svc/orders"}}},
			"break_glass": map[string]any{},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("data of orders (-want +got):\n%s", diff)
	}
	caller := cut(t, spiffeid.RequireFromString("spiffe://example.org/svc/caller"))
	if diff := cmp.Diff([]string{"data.json", "guard.rego", "lib/shared.rego"}, paths(caller.Content)); diff != "" {
		t.Errorf("files of a mere caller (-want +got):\n%s", diff)
	}
}

func TestOpenSlice(t *testing.T) {
	key, keys := newKey(t)
	other, _ := newKey(t)
	seal := func(s *bundle.Slice, key *ecdsa.PrivateKey) []byte {
		t.Helper()
		data, err := bundle.SealUnchecked(s, key)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := cut(t, orders)
	got, err := bundle.OpenSlice(seal(good, key), keys, orders)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(good, got, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
		t.Errorf("slice (-want +got):\n%s", diff)
	}
	payments := spiffeid.RequireFromString("spiffe://example.org/svc/payments")
	relabelled := cut(t, payments)
	relabelled.SPIFFEID = orders
	overstated := cut(t, orders)
	overstated.Services = []string{"orders", "payments"}
	unrevised := cut(t, orders)
	unrevised.Revision.Number = 0
	sourcesOnly := sources()
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"other key", seal(good, other), "not trusted here"},
		{"foreign", seal(cut(t, payments), key), "is for spiffe://example.org/svc/payments"},
		{"foreign service", seal(relabelled, key), "not a service of spiffe://example.org/svc/orders"},
		{"services not held", seal(overstated, key), "names services"},
		{"no revision", seal(unrevised, key), "no revision"},
		{"signed sources", archive(t, sourcesOnly, sign(t, sourcesOnly, key, bundle.ScopeSources)), "is for scope"},
		{"no manifest", archive(t, sourcesOnly, sign(t, sourcesOnly, key, bundle.ScopeSlice)), ".manifest: missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bundle.OpenSlice(tt.data, keys, orders)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParseKeys(t *testing.T) {
	key, keys := newKey(t)
	second, _ := newKey(t)
	got, err := bundle.ParseKeys(append(publicPEM(t, key), publicPEM(t, second)...))
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	for id := range keys {
		if got[id] == nil {
			t.Errorf("key %s is missing", id)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"empty": nil, "garbage": []byte("x"), "curve": publicPEM(t, p384), "trailing": append(publicPEM(t, key), 'x')} {
		if _, err := bundle.ParseKeys(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzReadArchive(f *testing.F) {
	key, keys := newKey(f)
	c := sources()
	f.Add(archive(f, c, nil))
	f.Add(archive(f, c, sign(f, c, key, bundle.ScopeSources)))
	s, err := cut(f, orders).Seal(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add(tarOf(f, entry{tar.Header{Typeflag: tar.TypeReg, Name: "../x.rego"}, "package x"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := bundle.ReadArchive(data)
		if err != nil {
			return
		}
		for _, file := range a.Content {
			if strings.HasPrefix(file.Path, "/") || strings.HasPrefix(file.Path, "..") || strings.Contains(file.Path, "/../") {
				t.Fatalf("path %q was accepted", file.Path)
			}
		}
		_, _ = a.Verify(keys, bundle.ScopeSources)
		docs, _ := a.Content.Data()
		_, _ = a.Content.Catalogue(docs)
		again, err := a.Content.Archive(nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := bundle.ReadArchive(again)
		if err != nil || b.Content.Digest() != a.Content.Digest() {
			t.Fatalf("round trip: %v", err)
		}
	})
}

package bundle_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// TestOtherSignaturesAreOfNoSources: what a key signed for another purpose would
// cover a part without files, and so take away what its publisher has.
func TestOtherSignaturesAreOfNoSources(t *testing.T) {
	key, keys := newKey(t)
	approval, err := bundle.SignApproval(key, bundle.Approved{Proposal: 1, Proposed: time.Unix(1, 0), Digest: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	statement, err := bundle.EpochStatement{Epoch: 2, From: "none"}.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		signatures []byte
		want       bool
	}{
		"approval": {signatureFile(t, approval), false},
		"epoch":    {signatureFile(t, statement), false},
		"no files": {sign(t, nil, key, bundle.ScopeSources), true},
	} {
		a, err := bundle.ReadArchive(archive(t, nil, tt.signatures))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Verify(keys, bundle.ScopeSources); (err == nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func signatureFile(t *testing.T, jws string) []byte {
	t.Helper()
	data, err := json.Marshal(map[string][]string{"signatures": {jws}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestSourcesAreBoundedTogether: before anything is verified, many parts take no
// more memory than a policy does.
func TestSourcesAreBoundedTogether(t *testing.T) {
	key, keys := newKey(t)
	id := spiffeid.RequireFromString("spiffe://example.org/svc/orders")
	part := func(name string, files int) bundle.Part {
		p := bundle.Part{Publisher: name}
		for i := range files {
			p.Content = append(p.Content, bundle.File{Path: name + string(rune('a'+i)) + ".rego", Content: make([]byte, bundle.MaxFileBytes)})
		}
		return p
	}
	for name, tt := range map[string]struct {
		parts []bundle.Part
		want  string
	}{
		"as much as can be": {[]bundle.Part{part("x", 4), part("y", 4)}, ""},
		"more":              {[]bundle.Part{part("x", 4), part("y", 5)}, "policy sources: more than 33554432 bytes in all"},
	} {
		src := bundle.Sources{Revision: policy.Revision{Epoch: 1, Number: 1}, SPIFFEID: id, Parts: tt.parts}
		data, err := src.Seal(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bundle.OpenSources(data, keys, id); tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

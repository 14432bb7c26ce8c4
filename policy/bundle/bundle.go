// Package bundle reads, writes, signs and verifies policy as OPA bundles.
//
// A publisher's sources are a Content: .rego files, their tests, YAML rules and
// data files, taken from a directory or a tar.gz. Its Digest names it. The control
// plane cuts from it, for each SPIFFE ID, the Slice that this workload needs
// and signs that with its decision key; a sidecar opens only slices that a
// pinned key signed, that are its own, and that are not older than what it
// runs.
//
// Signatures are OPA's .signatures.json (one ES256 JWS over the hash of each
// file), so `opa sign` and `opa run --verification-key` work with them.
package bundle

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/rules"
)

// Limits of a policy. They bound what one push can make a control plane and
// its sidecars hold.
const (
	MaxFiles = 4096
	// Bytes.
	MaxFileBytes    = 4 << 20
	MaxContentBytes = 32 << 20
	MaxArchiveBytes = 16 << 20
	maxPathBytes    = 255
	maxPathDepth    = 16
)

// Files of a bundle that are not sources.
const (
	manifestFile   = ".manifest"
	signaturesFile = ".signatures.json"
	// programFile is the compiled form, in slices only.
	programFile = ".program"
)

// File is one file of a policy. Path is relative, with slashes.
type File struct {
	Path    string
	Content []byte
}

// Content is the sources of a policy, in the order of their paths, each path
// once.
type Content []File

// Digest is the SHA-256 that names the content: of each file in order, the
// length of its path, the path, the length of its bytes and the bytes, lengths
// in 8 bytes big endian, after a domain separator.
func (c Content) Digest() [32]byte {
	h := sha256.New()
	h.Write([]byte("writ policy content v1\n"))
	var n [8]byte
	part := func(b []byte) {
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	for _, f := range c {
		part([]byte(f.Path))
		part(f.Content)
	}
	return [32]byte(h.Sum(nil))
}

// File returns the content of the file at path.
func (c Content) File(path string) ([]byte, bool) {
	i, ok := slices.BinarySearchFunc(c, path, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return nil, false
	}
	return c[i].Content, true
}

// IsModule reports whether the file is Rego, tests included.
func (f File) IsModule() bool { return strings.HasSuffix(f.Path, ".rego") }

// IsTest reports whether the file holds tests, which are run before
// activation and are never part of what decides.
func (f File) IsTest() bool { return strings.HasSuffix(f.Path, "_test.rego") }

// IsData reports whether the file is a data document.
func (f File) IsData() bool {
	switch path.Base(f.Path) {
	case "data.json", "data.yaml", "data.yml":
		return true
	}
	return false
}

// IsRules reports whether the file holds YAML rules.
func (f File) IsRules() bool { return rules.IsFile(f.Path) }

func (f File) isSource() bool {
	return f.IsModule() || f.IsData() || f.IsRules() || f.Path == manifestFile
}

// limit is how many bytes the file may have.
func (f File) limit() int {
	if f.IsRules() {
		return rules.MaxFileBytes
	}
	return MaxFileBytes
}

// collector gathers the files of a Content within the limits, none of which
// grows when it is decoded.
type collector struct {
	files Content
	bytes int
}

func (c *collector) add(f File) error {
	if len(c.files) == MaxFiles {
		return refuse(f.Path, "more than %d files", MaxFiles)
	}
	if limit := f.limit(); len(f.Content) > limit {
		return refuse(f.Path, "larger than %d bytes: make several files", limit)
	}
	if c.bytes += len(f.Content); c.bytes > MaxContentBytes {
		return refuse(f.Path, "the policy is larger than %d bytes in all", MaxContentBytes)
	}
	if problem := checkPlain(f); problem != nil {
		return policy.Refused{*problem}
	}
	c.files = append(c.files, f)
	return nil
}

func (c *collector) content() (Content, error) {
	slices.SortFunc(c.files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(c.files); i++ {
		if c.files[i].Path == c.files[i-1].Path {
			return nil, refuse(c.files[i].Path, "the file is there twice")
		}
	}
	return c.files, nil
}

// checkPath accepts a relative path that means the same everywhere.
func checkPath(p string) error {
	switch {
	case p == "" || len(p) > maxPathBytes:
		return refuse("", "path %.80q: want 1 to %d bytes", p, maxPathBytes)
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl) || strings.Contains(p, `\`):
		return refuse("", "path %q: control characters, backslashes and invalid UTF-8 are not allowed", p)
	case path.IsAbs(p) || path.Clean(p) != p || p == ".." || strings.HasPrefix(p, "../"):
		return refuse("", "path %q leads outside of the policy or is not in its shortest form", p)
	case strings.Count(p, "/") >= maxPathDepth:
		return refuse("", "path %q is deeper than %d", p, maxPathDepth)
	}
	return nil
}

func refuse(file, format string, args ...any) error {
	return policy.Refused{{File: file, Code: policy.ProblemLimit, Message: fmt.Sprintf(format, args...)}}
}

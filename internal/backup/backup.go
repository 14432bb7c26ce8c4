// Package backup writes and restores the state of a control plane as one tar:
// its files, and last of all a manifest with their SHA-256 sums, so that one
// that was cut short or changed is never restored. It knows of files only; what
// belongs into a backup, and in which order, is its caller's.
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Version of the format.
const Version = 1

const (
	manifestName     = "manifest.json"
	maxManifestBytes = 64 << 20
	maxFiles         = 1 << 20
)

// Manifest says what a backup holds.
type Manifest struct {
	Version     int       `json:"version"`
	TrustDomain string    `json:"trust_domain"`
	Writ        string    `json:"writ"`
	Created     time.Time `json:"created"`
	// Keys is whether private keys are in it.
	Keys  bool  `json:"keys"`
	Files []Sum `json:"files"`
}

// Sum is one file of a backup.
type Sum struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Bytes is the size of all files.
func (m *Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// Writer writes a backup. Add its files, then Close it.
type Writer struct {
	tw       *tar.Writer
	manifest Manifest
}

// NewWriter writes to w. Version and Files of m are filled in.
func NewWriter(w io.Writer, m Manifest) *Writer {
	m.Version, m.Files = Version, []Sum{}
	return &Writer{tw: tar.NewWriter(w), manifest: m}
}

// Add writes a file of exactly size bytes. Secret files get mode 0600.
func (w *Writer) Add(name string, size int64, secret bool, r io.Reader) error {
	if err := checkName(name); err != nil {
		return err
	}
	mode := int64(0o644)
	if secret {
		mode = 0o600
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: w.manifest.Created, Format: tar.FormatPAX}
	if err := w.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w.tw, sum), io.LimitReader(r, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	w.manifest.Files = append(w.manifest.Files, Sum{name, size, hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// Close writes the manifest and the end of the tar.
func (w *Writer) Close() error {
	doc, err := json.MarshalIndent(w.manifest, "", "  ")
	if err != nil {
		return err
	}
	doc = append(doc, '\n')
	h := &tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Mode: 0o600, Size: int64(len(doc)), ModTime: w.manifest.Created, Format: tar.FormatPAX}
	if err := w.tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := w.tw.Write(doc); err != nil {
		return err
	}
	return w.tw.Close()
}

// Verify reads a whole backup and compares every file with the manifest.
func Verify(r io.Reader) (*Manifest, error) {
	return scan(r, func(_ *tar.Header, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
}

// scan gives each file to use, which reads all of it, and compares sums. What
// use did is worth nothing when scan returns an error.
func scan(r io.Reader, use func(*tar.Header, io.Reader) error) (*Manifest, error) {
	tr := tar.NewReader(r)
	var have []Sum
	seen := map[string]bool{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the backup has no manifest at its end: it was cut short, or is none")
		}
		if err != nil {
			return nil, fmt.Errorf("the backup is damaged: %w", err)
		}
		if h.Typeflag != tar.TypeReg || h.Size < 0 || len(have) == maxFiles {
			return nil, fmt.Errorf("the backup holds %q, which is no file of one", h.Name)
		}
		if h.Name == manifestName {
			return compare(tr, h.Size, have)
		}
		if err := checkName(h.Name); err != nil {
			return nil, err
		}
		if seen[h.Name] {
			return nil, fmt.Errorf("the backup holds %s twice", h.Name)
		}
		seen[h.Name] = true
		sum := sha256.New()
		if err := use(h, io.TeeReader(tr, sum)); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		have = append(have, Sum{h.Name, h.Size, hex.EncodeToString(sum.Sum(nil))})
	}
}

func compare(r io.Reader, size int64, have []Sum) (*Manifest, error) {
	if size > maxManifestBytes {
		return nil, errors.New("the manifest is too large")
	}
	doc, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("the backup is damaged: %w", err)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Version != Version {
		return nil, fmt.Errorf("the backup is of version %d, this build knows %d", m.Version, Version)
	}
	if len(m.Files) != len(have) {
		return nil, fmt.Errorf("the backup holds %d files, its manifest names %d", len(have), len(m.Files))
	}
	for i, f := range m.Files {
		if f != have[i] {
			return nil, fmt.Errorf("%s is not what the manifest says: the backup was changed or is damaged", f.Name)
		}
	}
	return &m, nil
}

// checkName accepts the files that a control plane has: in the data directory
// itself, or in one of the directories below it.
func checkName(name string) error {
	dir, base := path.Split(name)
	switch {
	case path.Clean(name) != name, !filepath.IsLocal(name), strings.HasPrefix(base, "."), strings.ContainsAny(name, "\\\x00"):
	case name == "writ.db":
		return nil
	case dir == "keys/" || dir == "public/" || dir == "audit/":
		return nil
	}
	return fmt.Errorf("%q is no file of a control plane", name)
}

// dirMode is that of a directory of the data directory.
func dirMode(name string) fs.FileMode {
	if name == "public" {
		return 0o755
	}
	return 0o700
}

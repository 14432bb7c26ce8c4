package ledger

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/atomicfile"
)

// Origin is the name of a trust domain's ledger, in its heads and its key.
func Origin(td spiffeid.TrustDomain) string { return originPrefix + td.Name() }

const originPrefix = "writ/audit/"

// Head is a signed statement of what the ledger held at a time: a C2SP
// checkpoint with the time as its extension line.
type Head struct {
	Origin string
	Size   uint64
	Root   audit.Hash
	Time   time.Time
}

// text is the body of the note:
//
//	writ/audit/example.org
//	1234
//	<root, base64>
//	time 2026-01-02T03:04:05.678901234Z
func (h Head) text() string {
	return fmt.Sprintf("%s\n%d\n%s\ntime %s\n", h.Origin, h.Size,
		base64.StdEncoding.EncodeToString(h.Root[:]), h.Time.UTC().Format(time.RFC3339Nano))
}

func parseHead(text string) (Head, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 5 || lines[len(lines)-1] != "" {
		return Head{}, errors.New("head: want origin, size, root and time")
	}
	h := Head{Origin: lines[0]}
	var err error
	if h.Size, err = strconv.ParseUint(lines[1], 10, 64); err != nil || strconv.FormatUint(h.Size, 10) != lines[1] {
		return Head{}, fmt.Errorf("head: size %q", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(h.Root) {
		return Head{}, fmt.Errorf("head: root %q", lines[2])
	}
	h.Root = audit.Hash(root)
	at, ok := strings.CutPrefix(lines[3], "time ")
	if h.Time, err = time.Parse(time.RFC3339Nano, at); err != nil || !ok {
		return Head{}, fmt.Errorf("head: time %q", lines[3])
	}
	return h, nil
}

func (h Head) sign(signer note.Signer) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: h.text()}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign head: %w", err)
	}
	return b, nil
}

// OpenHead verifies one signed head.
func OpenHead(signed []byte, keys note.Verifiers) (Head, error) {
	n, err := note.Open(signed, keys)
	if err != nil {
		return Head{}, fmt.Errorf("head: %w", err)
	}
	h, err := parseHead(n.Text)
	if err != nil {
		return Head{}, err
	}
	for _, s := range n.Sigs {
		if s.Name == h.Origin {
			return h, nil
		}
	}
	return Head{}, fmt.Errorf("head of %s: not signed under that name", h.Origin)
}

// splitHeads cuts a heads file into notes, which an empty line follows each.
// rest is what an unfinished write left.
func splitHeads(b []byte) (heads [][]byte, rest []byte) {
	for len(b) > 0 {
		// The first empty line of a note parts text and signatures, the second
		// ends it.
		text := bytes.Index(b, []byte("\n\n"))
		if text < 0 {
			return heads, b
		}
		sigs := bytes.Index(b[text+2:], []byte("\n\n"))
		if sigs < 0 {
			return heads, b
		}
		end := text + 2 + sigs + 1
		heads = append(heads, b[:end])
		b = b[end+1:]
	}
	return heads, nil
}

// signer signs notes with a crypto.Signer, so that the key may live in a key
// manager.
type signer struct {
	name string
	hash uint32
	key  crypto.Signer
}

func (s *signer) Name() string    { return s.name }
func (s *signer) KeyHash() uint32 { return s.hash }
func (s *signer) Sign(msg []byte) ([]byte, error) {
	return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
}

// NewSigner signs the heads of a trust domain's ledger with an Ed25519 key. It
// returns the verifier key too, in the form of golang.org/x/mod/sumdb/note.
func NewSigner(td spiffeid.TrustDomain, key crypto.Signer) (note.Signer, string, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, "", fmt.Errorf("audit key: %T, want Ed25519", key.Public())
	}
	vkey, err := note.NewEd25519VerifierKey(Origin(td), pub)
	if err != nil {
		return nil, "", fmt.Errorf("audit key: %w", err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, "", fmt.Errorf("audit key: %w", err)
	}
	return &signer{name: v.Name(), hash: v.KeyHash(), key: key}, vkey, nil
}

// LoadSigner reads the audit key in file (a seed in base64, mode 0600), or
// makes one where there is none.
func LoadSigner(td spiffeid.TrustDomain, file string) (note.Signer, string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = makeKey(file); err != nil {
			return nil, "", err
		}
	} else if err != nil {
		return nil, "", fmt.Errorf("read audit key: %w", err)
	}
	seed, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, "", fmt.Errorf("audit key %s: want %d bytes in base64", file, ed25519.SeedSize)
	}
	return NewSigner(td, ed25519.NewKeyFromSeed(seed))
}

func makeKey(file string) ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make audit key: %w", err)
	}
	b := []byte(base64.StdEncoding.EncodeToString(key.Seed()) + "\n")
	if err := atomicfile.Write(file, b, 0o600); err != nil {
		return nil, fmt.Errorf("make audit key: %w", err)
	}
	return b, nil
}

// Keys reads verifier keys, one per line.
func Keys(text string) (note.Verifiers, error) {
	var list []note.Verifier
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("verifier key %q: %w", line, err)
		}
		list = append(list, v)
	}
	if len(list) == 0 {
		return nil, errors.New("no verifier key")
	}
	return note.VerifierList(list...), nil
}

// TrustDomainOf is the name of the trust domain whose ledger is in dir, by the key that
// lies there; empty where none does. It is not verified.
func TrustDomainOf(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("whose ledger is it: %w", err)
	}
	origin, _, _ := strings.Cut(string(b), "+")
	name, _ := strings.CutPrefix(origin, originPrefix)
	return name, nil
}

package bundle

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
)

const (
	purposeSources = "writ-policy-sources"
	envelopeFile   = "envelope.jws"
	// MaxParts bounds the publishers of one policy, in transit.
	MaxParts         = 256
	maxEnvelopeBytes = 1 << 20
)

// Sources is what a workload gets that trusts publishers and not the control
// plane: all parts of a revision as their publishers signed them. The decision
// key signs the envelope only, which says in which order revisions come.
type Sources struct {
	Revision  policy.Revision
	Activated time.Time
	SPIFFEID  spiffeid.ID
	Parts     []Part
	// Evaluate says that the policy is not to be compiled: its compiled form was
	// seen to answer otherwise than the sources.
	Evaluate bool
	// Packed are the Archives of Parts for Seal, which are the same for every
	// workload; nil to have them made.
	Packed [][]byte
}

// Pack makes the archives of parts.
func Pack(parts []Part) ([][]byte, error) {
	packed := make([][]byte, len(parts))
	for i, p := range parts {
		var err error
		if packed[i], err = p.Archive(); err != nil {
			return nil, fmt.Errorf("seal sources: part of %s: %w", p.Publisher, err)
		}
	}
	return packed, nil
}

// envelope is the payload of the JWS.
type envelope struct {
	Purpose      string         `json:"purpose"`
	Epoch        uint64         `json:"epoch"`
	Number       uint64         `json:"number"`
	SourceDigest string         `json:"source_digest"`
	SPIFFEID     string         `json:"spiffe_id"`
	Activated    int64          `json:"activated,string"`
	Parts        []envelopePart `json:"parts"`
	Evaluate     bool           `json:"evaluate,omitempty"`
}

type envelopePart struct {
	Publisher string `json:"publisher"`
	SHA256    string `json:"sha256"`
}

// Seal signs the envelope with the decision key and writes it and the parts as
// one tar.
func (s *Sources) Seal(key crypto.Signer) ([]byte, error) {
	e := envelope{
		Purpose: purposeSources, Epoch: s.Revision.Epoch, Number: s.Revision.Number, SourceDigest: hex.EncodeToString(s.Revision.Digest[:]),
		SPIFFEID: s.SPIFFEID.String(), Activated: s.Activated.UnixNano(), Parts: []envelopePart{}, Evaluate: s.Evaluate,
	}
	archives := s.Packed
	if archives == nil {
		var err error
		if archives, err = Pack(s.Parts); err != nil {
			return nil, err
		}
	}
	if len(archives) != len(s.Parts) {
		return nil, fmt.Errorf("seal sources: %d archives of %d parts", len(archives), len(s.Parts))
	}
	for i, p := range s.Parts {
		sum := sha256.Sum256(archives[i])
		e.Parts = append(e.Parts, envelopePart{p.Publisher, hex.EncodeToString(sum[:])})
	}
	text, err := signJWS(key, e)
	if err != nil {
		return nil, fmt.Errorf("seal sources: %w", err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i, data := range append([][]byte{[]byte(text)}, archives...) {
		name := envelopeFile
		if i > 0 {
			name = partName(i - 1)
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX}); err != nil {
			return nil, fmt.Errorf("seal sources: %w", err)
		}
		if _, err := tw.Write(data); err != nil {
			return nil, fmt.Errorf("seal sources: %w", err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("seal sources: %w", err)
	}
	if buf.Len() > MaxArchiveBytes || len(s.Parts) > MaxParts {
		return nil, fmt.Errorf("seal sources: %d bytes of %d publishers: at most %d and %d", buf.Len(), len(s.Parts), MaxArchiveBytes, MaxParts)
	}
	return buf.Bytes(), nil
}

func partName(i int) string { return fmt.Sprintf("part-%03d.tar.gz", i) }

// OpenSources reads sealed sources for the workload id, whose envelope one of
// keys signed. The parts are those of the envelope; who signed them, and
// whether that is somebody to trust, is for the caller to verify.
func OpenSources(data []byte, keys Keys, id spiffeid.ID) (*Sources, error) {
	if len(data) > MaxArchiveBytes {
		return nil, fmt.Errorf("policy sources: larger than %d bytes", MaxArchiveBytes)
	}
	tr := tar.NewReader(bytes.NewReader(data))
	text, err := nextFile(tr, envelopeFile, maxEnvelopeBytes)
	if err != nil {
		return nil, fmt.Errorf("policy sources: %w", err)
	}
	var e envelope
	if err := openJWS(string(text), keys, &e); err != nil {
		return nil, fmt.Errorf("policy sources: envelope: %w", err)
	}
	s, err := e.sources(id)
	if err != nil {
		return nil, fmt.Errorf("policy sources: envelope: %w", err)
	}
	files, size, signatures := 0, 0, 0
	for i, want := range e.Parts {
		data, err := nextFile(tr, partName(i), MaxArchiveBytes)
		if err != nil {
			return nil, fmt.Errorf("policy sources: part of %q: %w", want.Publisher, err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want.SHA256 {
			return nil, fmt.Errorf("policy sources: part of %q is not the one that the envelope names", want.Publisher)
		}
		a, err := ReadArchive(data)
		if err != nil {
			return nil, fmt.Errorf("policy sources: part of %q: %w", want.Publisher, err)
		}
		// Packed, a part may be a thousandth of what it is.
		if files += len(a.Content); files > MaxFiles {
			return nil, fmt.Errorf("policy sources: more than %d files in all", MaxFiles)
		}
		for _, f := range a.Content {
			size += len(f.Content)
		}
		if signatures += len(a.signatures); max(size, signatures) > MaxContentBytes {
			return nil, fmt.Errorf("policy sources: more than %d bytes in all", MaxContentBytes)
		}
		s.Parts = append(s.Parts, Part{Publisher: want.Publisher, Content: a.Content, Signatures: a.signatures})
	}
	if _, err := tr.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("policy sources: more than the envelope names")
	}
	return s, nil
}

// sources reads what an envelope says of itself.
func (e *envelope) sources(id spiffeid.ID) (*Sources, error) {
	digest, err := hex.DecodeString(e.SourceDigest)
	switch {
	case e.Purpose != purposeSources:
		return nil, fmt.Errorf("it is for %q", e.Purpose)
	case err != nil || len(digest) != 32:
		return nil, errors.New("source_digest is not a SHA-256")
	case e.Epoch == 0 || e.Number == 0:
		return nil, errors.New("no revision")
	case e.SPIFFEID != id.String():
		return nil, fmt.Errorf("it is for %s, not for %s", e.SPIFFEID, id)
	case len(e.Parts) > MaxParts:
		return nil, fmt.Errorf("more than %d parts", MaxParts)
	}
	return &Sources{
		Revision:  policy.Revision{Epoch: e.Epoch, Number: e.Number, Digest: [32]byte(digest)},
		Activated: time.Unix(0, e.Activated).UTC(), SPIFFEID: id, Evaluate: e.Evaluate,
	}, nil
}

func nextFile(tr *tar.Reader, name string, limit int64) ([]byte, error) {
	h, err := tr.Next()
	if err != nil {
		return nil, fmt.Errorf("%s is missing: %w", name, err)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || h.Size > limit {
		return nil, fmt.Errorf("want the file %s, got %.80q", name, h.Name)
	}
	return io.ReadAll(io.LimitReader(tr, limit))
}

package sqlstore

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"hash"

	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry"
)

// digest is that of an entry, see registry.Entry.Digest.
type digest [sha256.Size]byte

// sum stands for a set of entries: the XOR of a share of each. The shares are
// secret and independent, and a sum never leaves the process but under an HMAC, so
// that no other set with the same sum can be made (an MSet-XOR-Hash, Clarke et al.,
// "Incremental Multiset Hash Functions", with the sum itself kept secret too).
type sum [sha256.Size]byte

// sealer marks rows and seals sets of them. It is not safe for concurrent use, but
// for markOf.
type sealer struct {
	id    string
	rows  []byte // of markOf
	marks hash.Hash
	part  hash.Hash
	whole hash.Hash
	// names is for the seal on templates.
	names hash.Hash
}

func newSealer(secret keys.Secret) (*sealer, error) {
	derive := func(use string) ([]byte, error) {
		return hkdf.Key(sha256.New, secret[:], nil, "writ registry "+use+" 1", sha256.Size)
	}
	var derived [6][]byte
	for n, use := range []string{"id", "mark", "share", "seal", "templates", "row"} {
		key, err := derive(use)
		if err != nil {
			return nil, err
		}
		derived[n] = key
	}
	mac := func(n int) hash.Hash { return hmac.New(sha256.New, derived[n]) }
	return &sealer{id: hex.EncodeToString(derived[0][:8]), marks: mac(1), part: mac(2), whole: mac(3), names: mac(4), rows: derived[5]}, nil
}

// mark is what stands in the row of an entry.
func (s *sealer) mark(d digest) (m [sha256.Size]byte) {
	s.marks.Reset()
	s.marks.Write(d[:])
	s.marks.Sum(m[:0])
	return m
}

func (s *sealer) marked(d digest, mark []byte) bool {
	want := s.mark(d)
	return hmac.Equal(want[:], mark)
}

// toggle adds an entry to the sum, or takes it out.
func (s *sealer) toggle(total *sum, d digest) {
	var share [sha256.Size]byte
	s.part.Reset()
	s.part.Write(d[:])
	s.part.Sum(share[:0])
	subtle.XORBytes(total[:], total[:], share[:])
}

// seal is what stands beside a revision. templates is the revision of the
// templates, 0 where there never were any; facts that since which there are facts.
func (s *sealer) seal(revision uint64, total sum, templates, facts uint64) string {
	s.whole.Reset()
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], revision)
	s.whole.Write(number[:])
	s.whole.Write(total[:])
	for n, also := range []uint64{templates, facts} {
		// The length says which are there.
		if also != 0 || n == 0 && facts != 0 {
			binary.BigEndian.PutUint64(number[:], also)
			s.whole.Write(number[:])
		}
	}
	return string(s.whole.Sum(nil))
}

// sealTemplates is what stands beside the revision of the templates, which are
// sorted by ID.
func (s *sealer) sealTemplates(revision uint64, list []*registry.Template) string {
	s.names.Reset()
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], revision)
	s.names.Write(number[:])
	for _, t := range list {
		d := t.Digest()
		s.names.Write(d[:])
	}
	return string(s.names.Sum(nil))
}

// seals says whether the state of a database is of that set of entries.
func (s *sealer) seals(st state, total sum) bool {
	return st.keyID == s.id && hmac.Equal([]byte(s.seal(st.revision, total, st.templates, st.facts)), []byte(st.seal))
}

// total is the sum of a set of entries.
func (s *sealer) total(set map[string]digest) (total sum) {
	for _, d := range set {
		s.toggle(&total, d)
	}
	return total
}

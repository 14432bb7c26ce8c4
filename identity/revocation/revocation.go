// Package revocation ends SVIDs before they expire: one by its serial number,
// all of a SPIFFE ID, or all that were issued through an agent.
//
// A revocation is never taken back, and is forgotten when the last SVID that it
// could concern has expired. A list of them therefore only grows: two lists are
// merged by keeping everything, in any order and any number of times, and a
// list that is old, or comes from a restored backup, can add nothing wrong and
// take nothing away.
//
// Which agent an SVID came through is in its serial number (or jti), which
// begins with a Tag of that agent: nobody has to remember what was issued.
package revocation

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kind is what a revocation names.
type Kind string

// Kinds of Revocation.
const (
	Serial   Kind = "serial"
	SPIFFEID Kind = "spiffe-id"
	Agent    Kind = "agent"
)

// Revocation ends what it names. It does not change once made.
type Revocation struct {
	Kind Kind
	// Subject is a serial number, decimal, or a SPIFFE ID.
	Subject string
	// Before is when the SVIDs of a SPIFFE ID, or of an agent, must have been
	// issued to be valid; whole seconds. Zero with a serial number.
	Before time.Time
	// Backdate is how far before its issue an X509-SVID is valid: it was issued
	// that long after its notBefore.
	Backdate time.Duration
	// Expires is when the last SVID that this could concern has expired.
	Expires time.Time
	// Number grows from one revocation to the next at one issuer.
	Number uint64

	// For people: when, by whom and why.
	Revoked       time.Time
	Actor, Reason string
}

// Key is what is revoked. A list has one revocation for each.
func (r *Revocation) Key() string { return string(r.Kind) + " " + r.Subject }

func (r *Revocation) String() string {
	switch r.Kind {
	case Serial:
		return "serial number " + r.Subject
	case SPIFFEID:
		return fmt.Sprintf("%s, as issued before %s", r.Subject, r.Before.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("what was issued through %s before %s", r.Subject, r.Before.UTC().Format(time.RFC3339))
}

// Validate finds what is not a revocation.
func (r *Revocation) Validate() error {
	switch r.Kind {
	case Serial:
		if serial, err := ParseSerial(r.Subject); err != nil {
			return err
		} else if serial.String() != r.Subject {
			return fmt.Errorf("serial number %q is not in its decimal form", r.Subject)
		}
	case SPIFFEID, Agent:
		if _, err := spiffeid.FromString(r.Subject); err != nil {
			return fmt.Errorf("%s %q: %w", r.Kind, r.Subject, err)
		}
		if r.Before.Unix() <= 0 {
			return fmt.Errorf("%s %s: revoked as issued before no time", r.Kind, r.Subject)
		}
	default:
		return fmt.Errorf("revocation of %q: unknown kind", r.Kind)
	}
	if r.Backdate < 0 || r.Backdate > 24*time.Hour {
		return fmt.Errorf("%s: backdated by %v", r, r.Backdate)
	}
	if r.Expires.Unix() <= 0 {
		return fmt.Errorf("%s: it never expires", r)
	}
	return nil
}

// supersedes says whether r revokes at least what old does.
func (r *Revocation) supersedes(old *Revocation) bool {
	return !r.Before.Before(old.Before) && !r.Expires.Before(old.Expires) && r.Backdate <= old.Backdate && r.Number >= old.Number
}

// merge is what both revoke.
func merge(a, b *Revocation) *Revocation {
	switch {
	case b.supersedes(a):
		return b
	case a.supersedes(b):
		return a
	}
	both := *a
	if b.Number > a.Number {
		both = *b
	}
	if both.Before = a.Before; b.Before.After(a.Before) {
		both.Before = b.Before
	}
	if both.Expires = a.Expires; b.Expires.After(a.Expires) {
		both.Expires = b.Expires
	}
	both.Backdate = min(a.Backdate, b.Backdate)
	return &both
}

// maxSerial bounds what is taken for a serial number: 20 octets (RFC 5280,
// section 4.1.2.2).
const maxSerial = 20

// ParseSerial reads a serial number as people write it: decimal, as SPIRE and
// the record do, or hexadecimal with 0x before it, with colons between octets,
// or with a letter in it, as openssl prints it.
func ParseSerial(text string) (*big.Int, error) {
	digits, base := text, 10
	if hex, ok := strings.CutPrefix(strings.ToLower(text), "0x"); ok || strings.ContainsAny(hex, ":abcdef") {
		digits, base = strings.ReplaceAll(hex, ":", ""), 16
	}
	serial, ok := new(big.Int).SetString(digits, base)
	if !ok || strings.ContainsAny(digits, "+-_") || serial.Sign() <= 0 || serial.BitLen() > 8*maxSerial {
		return nil, fmt.Errorf("%q is not a serial number: want a decimal number, or a hexadecimal one as in 0x4fa3… or 4f:a3:…, of at most %d octets", text, maxSerial)
	}
	return serial, nil
}

// Tag is the part of a serial number that says through which agent an SVID was
// issued.
type Tag [8]byte

// TagOf is the tag of an agent.
func TagOf(agent spiffeid.ID) Tag {
	sum := sha256.Sum256([]byte("writ issued through\x00" + agent.String()))
	return Tag(sum[:8])
}

// MakeSerial makes a serial number for an SVID that is issued through an agent,
// the zero ID for none, out of random octets.
func MakeSerial(through spiffeid.ID, random [maxSerial]byte) *big.Int {
	random[0] = random[0]&0x3f | 0x40 // positive, and always of the same length
	if !through.IsZero() {
		tag := TagOf(through)
		copy(random[1:], tag[:])
	}
	return new(big.Int).SetBytes(random[:])
}

func tagIn(serial *big.Int) (tag Tag, ok bool) {
	b := serial.Bytes()
	if len(b) != maxSerial {
		return tag, false
	}
	return Tag(b[1:9]), true
}

// List is a state of the revocations. It does not change.
type List struct {
	byKey   map[string]*Revocation
	serials map[string]*Revocation // by Subject
	ids     map[spiffeid.ID]*Revocation
	agents  map[Tag]*Revocation
	number  uint64
	// soonest is when the first of them expires.
	soonest time.Time
}

// All returns the revocations, oldest first.
func (l *List) All() []*Revocation { return l.Since(0) }

// Since returns those with a higher number, oldest first.
func (l *List) Since(number uint64) []*Revocation {
	var out []*Revocation
	if number >= l.number && number > 0 {
		return nil
	}
	for _, r := range l.byKey {
		if r.Number > number || number == 0 {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *Revocation) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Key(), b.Key()))
	})
	return out
}

// Number is the highest number there was.
func (l *List) Number() uint64 { return l.number }

// Len is how many there are.
func (l *List) Len() int { return len(l.byKey) }

// X509 returns what revokes an X509-SVID of that ID, nil if nothing does.
func (l *List) X509(leaf *x509.Certificate, id spiffeid.ID) *Revocation {
	if len(l.byKey) == 0 {
		return nil
	}
	return l.Issued(leaf.SerialNumber, leaf.NotBefore, id)
}

// Issued is X509 for the parts of a certificate that matter.
func (l *List) Issued(serial *big.Int, notBefore time.Time, id spiffeid.ID) *Revocation {
	return l.find(serial, id, func(r *Revocation) time.Time { return notBefore.Add(r.Backdate) })
}

// JWT returns what revokes a JWT-SVID of that ID, nil if nothing does. A token
// without jti, or with one that is not a serial number, has the jti "". A token
// without iat has the zero time, and is revoked by whatever revokes its ID.
func (l *List) JWT(id spiffeid.ID, jti string, issued time.Time) *Revocation {
	if len(l.byKey) == 0 {
		return nil
	}
	serial, err := ParseSerial(jti)
	if err != nil {
		serial = nil
	}
	return l.find(serial, id, func(*Revocation) time.Time { return issued })
}

func (l *List) find(serial *big.Int, id spiffeid.ID, issued func(*Revocation) time.Time) *Revocation {
	if r := l.ids[id]; r != nil && issued(r).Before(r.Before) {
		return r
	}
	if serial == nil {
		return nil
	}
	if tag, ok := tagIn(serial); ok {
		if r := l.agents[tag]; r != nil && issued(r).Before(r.Before) {
			return r
		}
	}
	if len(l.serials) > 0 {
		return l.serials[serial.String()]
	}
	return nil
}

// Cutoff is when an SVID of id that is issued through an agent must have been
// issued not to be revoked; zero where there is no such time.
func (l *List) Cutoff(id, through spiffeid.ID) (cutoff time.Time) {
	if len(l.byKey) == 0 {
		return cutoff
	}
	if r := l.ids[id]; r != nil {
		cutoff = r.Before
	}
	if through.IsZero() {
		return cutoff
	}
	if r := l.agents[TagOf(through)]; r != nil && r.Before.After(cutoff) {
		cutoff = r.Before
	}
	return cutoff
}

// with is the list with others merged in, and without those that have expired.
// The same list is returned where nothing is different.
func (l *List) with(others []*Revocation, now time.Time) *List {
	if len(others) == 0 && (len(l.byKey) == 0 || now.Before(l.soonest)) {
		return l
	}
	next := &List{byKey: make(map[string]*Revocation, len(l.byKey)+len(others)), number: l.number}
	changed := false
	for key, r := range l.byKey {
		if now.Before(r.Expires) {
			next.byKey[key] = r
		} else {
			changed = true
		}
	}
	for _, r := range others {
		if !now.Before(r.Expires) {
			continue
		}
		next.number = max(next.number, r.Number)
		key := r.Key()
		merged := r
		if old := next.byKey[key]; old != nil {
			merged = merge(old, r)
			if merged == old || *merged == *old {
				continue
			}
		}
		next.byKey[key], changed = merged, true
	}
	if !changed {
		return l
	}
	next.index()
	return next
}

func (l *List) index() {
	l.serials, l.ids, l.agents = map[string]*Revocation{}, map[spiffeid.ID]*Revocation{}, map[Tag]*Revocation{}
	for _, r := range l.byKey {
		if l.soonest.IsZero() || r.Expires.Before(l.soonest) {
			l.soonest = r.Expires
		}
		if r.Kind == Serial {
			l.serials[r.Subject] = r
			continue
		}
		id, err := spiffeid.FromString(r.Subject)
		if err != nil {
			continue // Merge validated it
		}
		if r.Kind == SPIFFEID {
			l.ids[id] = r
		} else {
			l.agents[TagOf(id)] = r
		}
	}
}

// Set is a list that grows. It is safe for concurrent use. The zero Set is
// empty.
type Set struct {
	mu      sync.Mutex
	list    *List
	changed chan struct{}
	heard   time.Time
	// told is closed when the list is another, or heard.
	told chan struct{}
}

var empty = &List{}

// Now returns the list as it is, and a channel that is closed when it has become
// another.
func (s *Set) Now() (*List, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	return s.list, s.changed
}

func (s *Set) init() {
	if s.list == nil {
		s.list, s.changed = empty, make(chan struct{})
	}
}

// Merge adds revocations and forgets those that have expired. One that is not
// valid is an error; the others are added all the same.
func (s *Set) Merge(revocations []*Revocation, now time.Time) (changed bool, err error) {
	valid := make([]*Revocation, 0, len(revocations))
	var errs []error
	for _, r := range revocations {
		if invalid := r.Validate(); invalid != nil {
			errs = append(errs, invalid)
			continue
		}
		valid = append(valid, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	next := s.list.with(valid, now)
	if changed = next != s.list; changed {
		s.list = next
		close(s.changed)
		s.changed = make(chan struct{})
		s.tell()
	}
	return changed, few(errs)
}

// Heard notes that the list was current at t.
func (s *Set) Heard(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.After(s.heard) {
		s.heard = t
		s.tell()
	}
}

func (s *Set) tell() {
	if s.told != nil {
		close(s.told)
		s.told = nil
	}
}

// news is closed when the list is another, or was heard to be current.
func (s *Set) news() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told == nil {
		s.told = make(chan struct{})
	}
	return s.told
}

// CurrentAt is when the list was last known to be current; zero for never.
func (s *Set) CurrentAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

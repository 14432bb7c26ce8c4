// Package registry holds who may have which name: registration entries,
// agents and join tokens, as SPIRE defines them, and the Index that answers
// questions about them from memory. sqlstore, below it, makes them durable.
package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	// ErrNotFound: no such entry, agent or token.
	ErrNotFound = errors.New("not found")
	// ErrTokenUsed: the join token was valid and has been used before. Raise
	// an alarm: whoever holds it should not.
	ErrTokenUsed = errors.New("join token already used")
	// ErrTokenExpired: the join token was never used and is past its time.
	ErrTokenExpired = errors.New("join token expired")
)

// ExistsError says that an entry with the same ID, or with the same SPIFFE ID,
// parent and selectors, is there already.
type ExistsError struct {
	Entry *Entry
}

func (e *ExistsError) Error() string {
	return fmt.Sprintf("entry %s has the same id, or the same spiffe_id, parent_id and selectors", e.Entry.ID)
}

// Selector is a property of a node or workload, as in unix:uid:1000.
type Selector struct {
	Type, Value string
}

func (s Selector) String() string { return s.Type + ":" + s.Value }

// CompareSelectors orders selectors by type, then value.
func CompareSelectors(a, b Selector) int {
	if c := strings.Compare(a.Type, b.Type); c != 0 {
		return c
	}
	return strings.Compare(a.Value, b.Value)
}

// AliasSelector is the selector that every agent has by its ID:
// spiffe_id:<agent ID>.
func AliasSelector(agent spiffeid.ID) Selector {
	return Selector{Type: "spiffe_id", Value: agent.String()}
}

// Entry gives workloads that match Selectors, below ParentID, a SPIFFE ID. An
// entry that an Index or a store returned is shared: copy before changing it.
type Entry struct {
	ID       string
	SPIFFEID spiffeid.ID
	// ParentID is an agent, the SPIFFE ID of another entry, or the issuer
	// itself (spiffe://TD/spire/server) for an entry that names nodes.
	ParentID  spiffeid.ID
	Selectors []Selector // sorted, no duplicates
	// Lives of the SVIDs, in whole seconds; 0 is the issuer's default.
	X509SVIDTTL, JWTSVIDTTL time.Duration
	FederatesWith           []string
	DNSNames                []string
	Admin                   bool
	Downstream              bool
	StoreSVID               bool
	Hint                    string
	ExpiresAt               time.Time // zero: never
	// RevisionNumber is the registry's revision at the entry's last change.
	RevisionNumber int64
	CreatedAt      time.Time // whole seconds
}

// Normalize sorts the selectors and drops duplicates.
func (e *Entry) Normalize() {
	slices.SortFunc(e.Selectors, CompareSelectors)
	e.Selectors = slices.Compact(e.Selectors)
}

// Similarity is the same for entries with the same SPIFFE ID, parent and
// selectors, and only for those. The entry is normalized.
func (e *Entry) Similarity() [sha256.Size]byte {
	doc := make([]byte, 0, 256)
	field := func(s string) {
		doc = append(strconv.AppendInt(doc, int64(len(s)), 10), ':')
		doc = append(doc, s...)
	}
	field(e.SPIFFEID.String())
	field(e.ParentID.String())
	for _, s := range e.Selectors {
		field(s.Type)
		field(s.Value)
	}
	return sha256.Sum256(doc)
}

// Expired says whether the entry no longer holds at now.
func (e *Entry) Expired(now time.Time) bool {
	return !e.ExpiresAt.IsZero() && !now.Before(e.ExpiresAt)
}

// IsAlias says whether the entry is what a join token's alias became: it hangs
// on one agent and names that agent.
func (e *Entry) IsAlias() bool {
	return len(e.Selectors) == 1 && e.Selectors[0] == AliasSelector(e.ParentID)
}

// Agent is an attested node. One that an Index or a store returned is shared:
// copy before changing it.
type Agent struct {
	ID              spiffeid.ID
	AttestationType string
	Selectors       []Selector // sorted; the alias selector is implied
	CanReattest     bool
	Banned          bool
	// Serial numbers of the agent's SVID, decimal. The renewed one becomes
	// the current one when it is first used.
	Serial    string
	ExpiresAt time.Time
	NewSerial string
	// NewExpiresAt belongs to NewSerial.
	NewExpiresAt time.Time
}

// LastExpiry is when the agent's last usable SVID ends.
func (a *Agent) LastExpiry() time.Time {
	if a.NewSerial != "" && a.NewExpiresAt.After(a.ExpiresAt) {
		return a.NewExpiresAt
	}
	return a.ExpiresAt
}

// Has says whether the agent has all of the selectors, which are not empty.
func (a *Agent) Has(selectors []Selector) bool {
	for _, s := range selectors {
		if _, found := slices.BinarySearchFunc(a.Selectors, s, CompareSelectors); !found && s != AliasSelector(a.ID) {
			return false
		}
	}
	return len(selectors) > 0
}

// JoinToken is what is kept of a join token; never its value.
type JoinToken struct {
	Hash      [sha256.Size]byte
	ExpiresAt time.Time
	// Alias is an entry's SPIFFE ID that the agent gets on attestation; zero
	// for none.
	Alias spiffeid.ID
	// Local tells that a local administrator made it.
	Local bool
}

// NewToken makes the value of a join token: 130 random bits, letters and
// digits only, so that it is a path segment of a SPIFFE ID.
func NewToken() string { return rand.Text() }

// HashToken is what stands for a token at rest. The token is random, so a
// plain hash cannot be searched.
func HashToken(value string) [sha256.Size]byte { return sha256.Sum256([]byte(value)) }

package registry

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/template"
)

// Template gives workloads below ParentID the SPIFFE IDs that its Rule makes of
// their selectors. It is no entry: it names no nodes, nothing hangs below it, and
// its names are neither administrators nor issuers. It is shared like an Entry.
type Template struct {
	ID   string
	Rule template.Rule
	// ParentID is an agent, or the SPIFFE ID of an entry.
	ParentID spiffeid.ID
	// Lives of the SVIDs, in whole seconds; 0 is the issuer's default.
	X509SVIDTTL, JWTSVIDTTL time.Duration
	FederatesWith           []string
	Hint                    string
	// RevisionNumber is the registry's revision at the template's last change.
	RevisionNumber int64
	CreatedAt      time.Time // whole seconds
}

// Texts are patterns as they were written.
func Texts(patterns []*template.Pattern) []string {
	var list []string
	for _, p := range patterns {
		list = append(list, p.String())
	}
	return list
}

// Similar tells whether two templates give the same names to the same workloads.
func (t *Template) Similar(other *Template) bool {
	return t.Rule.SPIFFEID.String() == other.Rule.SPIFFEID.String() && t.ParentID == other.ParentID && slices.Equal(t.Rule.Selectors, other.Rule.Selectors)
}

// Equal tells whether two templates say the same, whenever they said it.
func (t *Template) Equal(other *Template) bool {
	return t.ID == other.ID && t.Similar(other) && slices.Equal(Texts(t.Rule.DNSNames), Texts(other.Rule.DNSNames)) &&
		t.X509SVIDTTL == other.X509SVIDTTL && t.JWTSVIDTTL == other.JWTSVIDTTL && slices.Equal(t.FederatesWith, other.FederatesWith) && t.Hint == other.Hint
}

// Digest stands for everything that the template says.
func (t *Template) Digest() [sha256.Size]byte {
	doc := make([]byte, 0, 512)
	field := func(s string) {
		doc = append(strconv.AppendInt(doc, int64(len(s)), 10), ':')
		doc = append(doc, s...)
	}
	number := func(n int64) { doc = append(strconv.AppendInt(doc, n, 10), ';') }
	field(t.ID)
	field(t.Rule.SPIFFEID.String())
	field(t.ParentID.String())
	for _, list := range [][]string{t.Rule.Selectors, Texts(t.Rule.DNSNames), t.FederatesWith} {
		number(int64(len(list)))
		for _, s := range list {
			field(s)
		}
	}
	number(int64(t.X509SVIDTTL))
	number(int64(t.JWTSVIDTTL))
	field(t.Hint)
	number(t.RevisionNumber)
	number(unixOrZero(t.CreatedAt))
	return sha256.Sum256(doc)
}

// TemplateChange is a template before and after.
type TemplateChange struct{ Old, New *Template }

// LoadTemplates replaces all templates. Whoever reloads an Index loads them first:
// the reload tells everyone.
func (x *Index) LoadTemplates(list []*Template) {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.templates)
	for _, t := range list {
		x.templates[t.ID] = t
	}
}

// applyTemplates takes changes over, and finds whom they touch.
func (x *Index) applyTemplates(c *Change, touched *ancestry) {
	for _, t := range c.Templates {
		if t.Old != nil {
			x.ascendFrom(t.Old.ParentID, touched)
			delete(x.templates, t.Old.ID)
		}
		if t.New != nil {
			x.ascendFrom(t.New.ParentID, touched)
			x.templates[t.New.ID] = t.New
		}
	}
}

// Template returns the template of that ID, or nil.
func (x *Index) Template(id string) *Template {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.templates[id]
}

// Templates returns all templates sorted by ID.
func (x *Index) Templates() []*Template {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return sortedTemplates(maps.Values(x.templates))
}

// AuthorizedTemplates returns the templates that the agent may have SVIDs of,
// sorted by ID.
func (x *Index) AuthorizedTemplates(agent spiffeid.ID, now time.Time) []*Template {
	x.mu.RLock()
	defer x.mu.RUnlock()
	a := x.agents[agent]
	if a == nil || a.Banned {
		return nil
	}
	return sortedTemplates(func(yield func(*Template) bool) {
		for _, t := range x.templates {
			if x.isBelow(t.ParentID, a, now) && !yield(t) {
				return
			}
		}
	})
}

// LookupTemplate returns the template of that ID if the agent may have SVIDs of
// it, nil otherwise, and the agent.
func (x *Index) LookupTemplate(agent spiffeid.ID, id string, now time.Time) (*Template, *Agent) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	a, t := x.agents[agent], x.templates[id]
	if a == nil || a.Banned || t == nil || !x.isBelow(t.ParentID, a, now) {
		return nil, a
	}
	return t, a
}

// isBelow tells whether what hangs on parent is the agent's.
func (x *Index) isBelow(parent spiffeid.ID, a *Agent, now time.Time) bool {
	if isIssuer(parent) {
		return false
	}
	climbed := make([]spiffeid.ID, 0, 4)
	return x.climbs(parent, a, now, &climbed)
}

// Names tells whether an entry, wherever it is, gives this SPIFFE ID.
func (x *Index) Names(id spiffeid.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.bySPIFFE[id]) > 0
}

func sortedTemplates(list func(func(*Template) bool)) []*Template {
	return slices.SortedFunc(list, func(a, b *Template) int { return cmp.Compare(a.ID, b.ID) })
}

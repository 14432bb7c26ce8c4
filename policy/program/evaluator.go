package program

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/policy"
)

// Evaluator is a Program ready to decide. It is safe for concurrent use.
type Evaluator struct {
	*engine
	revision policy.Revision
}

// engine is what evaluators of one Program share, whatever their revision.
type engine struct {
	// names of the units, and the units: a slice has few, and then comparing
	// is cheaper than hashing.
	names  []string
	units  []unit
	byName map[string]*unit // nil when there are few
	fields []field
	atoms  []atom
	nodes  []node
	refs   []ref
	conds  []uint32 // indices into atoms; each ref has a run of them
	expiry []int64  // by ref.expires; 0 is none
	tables []table
	trie   []trieNode
	first  []byte // of the label of each trieNode
	ranges []intervals
	paths  []pathIndex
	within []substrings
	// rules in the order of their ids, in which a decision lists them.
	rules []policy.Rule
	memos int
	pool  sync.Pool
}

// unit holds the index of each tier: the node to begin with, 0 for none.
type unit struct {
	ask    uint32
	tiers  []root // those that have clauses, in their order
	reason string // of a default deny
}

// root is where the index of a tier begins.
type root struct {
	tier policy.Tier
	node uint32
}

// ref is a clause in a leaf of the index: what remains to be tested of it.
type ref struct {
	rank    uint32 // of its rule
	from    uint32 // in engine.conds
	expires uint32 // in engine.expiry
	n       conditions
	ask     bool
}

// conditions counts those of one clause. It does not compile where a clause may
// have more than it counts.
type conditions uint16

const _ conditions = maxClauseAtoms * maxPreds

// At is e for the decisions of a revision, which it writes into each.
func (e *Evaluator) At(revision policy.Revision) *Evaluator {
	return &Evaluator{engine: e.engine, revision: revision}
}

// unit decides for a service, nil when none does.
func (e *engine) unit(service string) *unit {
	if e.byName != nil {
		return e.byName[service]
	}
	for i, name := range e.names {
		if name == service {
			return &e.units[i]
		}
	}
	return nil
}

// Decide fills out with what topdown would decide, or reports false: then out
// is empty and OPA has to be asked. It keeps neither in nor out, and reuses
// the memory of out.
func (e *Evaluator) Decide(in *policy.Input, out *policy.Decision) bool {
	out.Reset()
	u := e.unit(in.Destination.Service)
	if u == nil {
		return false
	}
	r := run{in: in, pool: &e.pool, layer: layerOf(in)}
	answered := r.understood() && e.decide(&r, u, out)
	r.end()
	if answered {
		out.Revision = e.revision
	}
	return answered
}

func (e *engine) decide(r *run, u *unit, out *policy.Decision) bool {
	if u.ask != 0 {
		e.visit(r, u.ask)
		if r.ask {
			return false
		}
	}
	for _, t := range u.tiers {
		// All clauses of the tier, not only until one holds: the decision names
		// every rule, and any of them may say to ask.
		e.visit(r, t.node)
		if r.ask {
			return false
		}
		if r.n > 0 {
			out.Verdict, out.Tier = tierVerdict(t.tier), t.tier
			e.name(r, out)
			return true
		}
	}
	out.Verdict, out.Tier, out.Reason = policy.Deny, policy.DefaultDeny, u.reason
	return true
}

// name lists the rules as a set of their ids would be listed.
func (e *engine) name(r *run, out *policy.Decision) {
	if r.n == 1 {
		out.Rules = append(out.Rules, e.rules[r.few[0]])
	} else {
		for _, rank := range r.ranks() {
			out.Rules = append(out.Rules, e.rules[rank])
		}
	}
	if r.expires != 0 {
		out.Expires = time.Unix(0, r.expires).UTC()
	}
}

// visit tests the clauses below a node that the input leads to.
func (e *engine) visit(r *run, at uint32) {
	for at != 0 && !r.ask {
		n := &e.nodes[at]
		switch n.kind {
		case leaf:
			e.scan(r, e.refs[n.at:n.at+n.n])
		case byNumber:
			if v, ok := r.number(&e.fields[n.field]); ok {
				e.visit(r, e.ranges[n.at].find(v))
			}
		case byPath:
			if r.request() && r.segments() {
				e.paths[n.at].visit(e, r, r.in.Request.Segments)
			}
		default:
			if f := &e.fields[n.field]; f.many {
				for _, s := range r.all(f, n.field) {
					e.follow(r, n, s)
				}
			} else if s, ok := r.one(f, n.field); ok {
				e.follow(r, n, s)
			}
		}
		at = n.rest
	}
}

// follow visits the children of an inner node that a value leads to.
func (e *engine) follow(r *run, n *node, s string) {
	switch n.kind {
	case byText:
		e.visit(r, e.tables[n.at].find(s))
	case byPrefix:
		e.prefixes(r, n.at, s)
	case bySuffix:
		e.suffixes(r, n.at, s)
	case byContent:
		e.within[n.at].visit(e, r, s)
	}
}

// scan tests clauses one by one.
func (e *engine) scan(r *run, refs []ref) {
next:
	for i := range refs {
		c := &refs[i]
		for _, at := range e.conds[c.from : c.from+uint32(c.n)] {
			if a := &e.atoms[at]; a.memo >= 0 {
				if !e.remembered(r, a) {
					continue next
				}
			} else if !e.test(r, a) {
				continue next
			}
		}
		if c.ask {
			r.ask = true
			return
		}
		r.hit(c.rank)
		if c.expires != 0 {
			if at := e.expiry[c.expires]; r.expires == 0 || at < r.expires {
				r.expires = at
			}
		}
	}
}

// New makes p ready to decide. It does not keep p.
func New(p *Program) (*Evaluator, error) {
	patterns, err := p.check()
	if err != nil {
		return nil, err
	}
	b := newBuilder(patterns)
	order := make([]uint32, len(p.Rules)) // Rule indices by rank.
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortStableFunc(order, func(x, y uint32) int {
		return compareText(p.Rules[x].ID, p.Rules[y].ID)
	})
	ranks := make([]uint32, len(order))
	for rank, rule := range order {
		ranks[rule] = uint32(rank)
		b.e.rules = append(b.e.rules, p.Rules[rule])
	}
	for i := range p.Units {
		b.unit(&p.Units[i], ranks)
	}
	return &Evaluator{engine: b.finish()}, nil
}

func noRule(u *Unit) string {
	if u.HasPolicy {
		return "no rule allows it"
	}
	return fmt.Sprintf("no policy for service %q", u.Service)
}

package simulate

import (
	"cmp"
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy"
)

// maxGroups bounds the groups of a report.
const maxGroups = 1000

// Group is changes of one kind, of one caller, on one route of one service.
type Group struct {
	Change Change `json:"change"`
	// Was and Is are the verdicts of baseline and candidate.
	Was string `json:"was"`
	Is  string `json:"is"`
	// Source is a SPIFFE ID, empty where the caller has none.
	Source string `json:"source"`
	// Service is the destination's.
	Service string `json:"service"`
	// Method and Route are empty at layer connection. In Route, {*} is a
	// segment that varies and {**} all that follow.
	Method string `json:"method,omitempty"`
	Route  string `json:"route,omitempty"`
	Count  uint64 `json:"count"`
	// Blocked passed and would not pass; Passing did not and would.
	Blocked uint64  `json:"blocked"`
	Passing uint64  `json:"passing"`
	Example Example `json:"example"`

	first uint64
}

// count adds a decision. The example is the first in the order of the record.
func (g *Group) count(index uint64, rec *Recorded, res *result, blocked, passing bool) {
	if g.Count == 0 {
		g.first = index
		g.Example = Example{
			DecisionID: strings.Clone(rec.ID), Time: rec.Input.Time, Path: strings.Clone(rec.Input.Request.Path),
			Baseline: answerOf(&res.baseline), Candidate: answerOf(&res.candidate),
			BaselineMode: res.was.String(), CandidateMode: res.is.String(),
		}
		if rec.Input.Layer != policy.LayerRequest {
			g.Example.Path = ""
		}
	}
	g.Count++
	if blocked {
		g.Blocked++
	}
	if passing {
		g.Passing++
	}
}

// merge takes in what another group counted.
func (g *Group) merge(o *Group) {
	if g.Count == 0 || o.Count > 0 && o.first < g.first {
		g.Example, g.first = o.Example, o.first
	}
	g.Count += o.Count
	g.Blocked += o.Blocked
	g.Passing += o.Passing
}

type groupKey struct {
	change                  Change
	was, is                 policy.Verdict
	source, service, method string
}

// groups finds the group of a change: by what changed, who called, and the
// route in a trie of its own.
type groups struct {
	tries map[groupKey]*routes
	// n groups there are, at most limit.
	n, limit int
}

func newGroups(limit int) groups {
	return groups{tries: map[groupKey]*routes{}, limit: limit}
}

// find is nil where there is no group and no room for another.
func (g *groups) find(in *policy.Input, res *result) *Group {
	key := groupKey{
		change: res.change, was: res.baseline.Verdict, is: res.candidate.Verdict,
		source: in.Source.ID, service: in.Destination.Service,
	}
	var segments []string
	literal := false
	if in.Layer == policy.LayerRequest {
		key.method = in.Request.Method
		segments = in.Request.Segments
		literal = in.Request.Protocol == policy.GRPC
	}
	trie := g.tries[key]
	if trie == nil {
		if g.n >= g.limit {
			return nil
		}
		// The record's memory is used again.
		key.source, key.service, key.method = strings.Clone(key.source), strings.Clone(key.service), strings.Clone(key.method)
		trie = new(routes)
		g.tries[key] = trie
	}
	before := trie.n
	found := trie.find(segments, literal, g.n < g.limit)
	g.n += trie.n - before
	return found
}

func (g *groups) sorted() []Group {
	all := []Group{}
	for key, trie := range g.tries {
		trie.each(func(route string, found *Group) {
			out := *found
			out.Change, out.Was, out.Is = key.change, key.was.String(), key.is.String()
			out.Source, out.Service, out.Method = key.source, key.service, key.method
			if out.Method != "" {
				out.Route = route
			}
			all = append(all, out)
		})
	}
	slices.SortFunc(all, func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.Change, b.Change), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.Service, b.Service), cmp.Compare(a.Route, b.Route), cmp.Compare(a.Method, b.Method), cmp.Compare(a.Was, b.Was))
	})
	return all
}

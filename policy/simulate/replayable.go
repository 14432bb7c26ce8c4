package simulate

import (
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy"
)

// readsNothing stands for a policy that reads no header and no query parameter.
var readsNothing policy.Reads

func (s *Side) reads(d policy.Destination) *policy.Reads {
	if s.Reads == nil {
		return &readsNothing
	}
	return s.Reads(d)
}

// obstacle says why a record cannot be replayed, or nothing.
func (w *worker) obstacle(r *Recorded) (reason, detail string) {
	if r.Input == nil {
		if r.Problem == Erased || r.Problem == Refused {
			return r.Problem, ""
		}
		return Malformed, r.Detail
	}
	if w.cfg.Baseline == nil && own(&r.Decision) {
		return NotByPolicy, ""
	}
	have := r.Reads
	if own(&r.Decision) {
		// What denied by itself knew of no header that a policy reads.
		have = &readsNothing
	}
	if reason, detail = w.side(&w.cfg.Candidate, r, have); reason == "" && w.cfg.Baseline != nil {
		reason, detail = w.side(w.cfg.Baseline, r, have)
	}
	return reason, detail
}

// side says what a policy reads that the record does not hold.
func (w *worker) side(s *Side, r *Recorded, have *policy.Reads) (reason, detail string) {
	need := s.reads(r.Input.Destination)
	for _, name := range r.Missing {
		if matters(name, need) {
			return Omitted, name
		}
	}
	if need == have {
		return "", ""
	}
	if have == nil {
		if need.AllHeaders || need.AllQuery || len(need.Headers)+len(need.Query) > 0 {
			return UnknownRevision, r.Decision.Revision.String()
		}
		return "", ""
	}
	key := [2]*policy.Reads{need, have}
	name, known := w.covered[key]
	if !known {
		name = uncovered(need, have)
		if len(w.covered) >= maxPairs {
			// Reads that are made anew for each record are not worth keeping.
			clear(w.covered)
		}
		w.covered[key] = name
	}
	if name != "" {
		return NotRecorded, name
	}
	return "", ""
}

// maxPairs bounds what is remembered about pairs of Reads.
const maxPairs = 4096

// matters reports whether what is missing could change an answer. Of headers
// and query parameters it is known who reads them; of all else it is assumed.
func matters(missing string, need *policy.Reads) bool {
	kind, name, named := strings.Cut(missing, ".")
	switch kind {
	case "headers":
		return need.AllHeaders || !named && len(need.Headers) > 0 || named && slices.Contains(need.Headers, name)
	case "query":
		return need.AllQuery || !named && len(need.Query) > 0 || named && slices.Contains(need.Query, name)
	}
	return true
}

// uncovered names something that need reads and have does not.
func uncovered(need, have *policy.Reads) string {
	part := func(kind string, need, have []string, allNeed, allHave bool) string {
		switch {
		case allHave:
			return ""
		case allNeed:
			return kind
		}
		for _, name := range need {
			if !slices.Contains(have, name) {
				return kind + "." + name
			}
		}
		return ""
	}
	if name := part("headers", need.Headers, have.Headers, need.AllHeaders, have.AllHeaders); name != "" {
		return name
	}
	return part("query", need.Query, have.Query, need.AllQuery, have.AllQuery)
}

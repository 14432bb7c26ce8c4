package simulate

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/policy"
)

// Bounds of a report.
const (
	// maxReasons with a detail of their own.
	maxReasons = 64
	// maxMismatches that are shown.
	maxMismatches = 5
	maxDetail     = 200
)

// Report is what a simulation found.
type Report struct {
	// Records looked at, and those of them that were replayed.
	Records  uint64 `json:"records"`
	Replayed uint64 `json:"replayed"`
	// Refused were turned away before policy was asked.
	Refused uint64 `json:"refused"`
	// From and To are the times of the first and last that was replayed.
	From *time.Time `json:"from,omitempty"`
	To   *time.Time `json:"to,omitempty"`

	NewlyAllowed   uint64 `json:"newly_allowed"`
	NewlyDenied    uint64 `json:"newly_denied"`
	NewlyUndefined uint64 `json:"newly_undefined"`
	NewlyError     uint64 `json:"newly_error"`
	// ModeChanged have the same verdict, enforced on one side only.
	ModeChanged uint64 `json:"mode_changed"`
	// TierChanged and RulesChanged have the same verdict for another reason.
	TierChanged  uint64 `json:"tier_changed"`
	RulesChanged uint64 `json:"rules_changed"`
	Same         uint64 `json:"same"`

	// Blocked passed and would not pass; Passing did not and would. An observed
	// service lets everything pass.
	Blocked uint64 `json:"blocked"`
	Passing uint64 `json:"passing"`

	BaselineVerdicts  Verdicts `json:"baseline_verdicts"`
	CandidateVerdicts Verdicts `json:"candidate_verdicts"`

	// Mismatched are decided otherwise by the baseline than its own content
	// decided when they were recorded: they put the rest in question.
	Mismatched uint64     `json:"mismatched"`
	Mismatches []Mismatch `json:"mismatches"`
	// Drifted are decided otherwise by the baseline than another content did.
	Drifted uint64 `json:"drifted"`

	NotReplayable uint64   `json:"not_replayable"`
	Reasons       []Reason `json:"reasons"`

	Groups []Group `json:"groups"`
	// Ungrouped changes are in groups beyond the most that a report has.
	Ungrouped uint64 `json:"ungrouped"`

	from, to time.Time
	groups   groups
	reasons  map[[2]string]*Reason
}

// Verdicts counts decisions by verdict.
type Verdicts struct {
	Allow     uint64 `json:"allow"`
	Deny      uint64 `json:"deny"`
	Undefined uint64 `json:"undefined"`
	Error     uint64 `json:"error"`
}

func (v *Verdicts) add(verdict policy.Verdict) {
	switch verdict {
	case policy.Allow:
		v.Allow++
	case policy.Deny:
		v.Deny++
	case policy.Undefined:
		v.Undefined++
	default:
		v.Error++
	}
}

// Reason counts what could not be replayed, and why.
type Reason struct {
	// Reason is erased, malformed, omitted, not-recorded, unknown-revision,
	// not-by-policy or looks-outside.
	Reason string `json:"reason"`
	// Detail is what is missing; empty where there is nothing to say, or too
	// much.
	Detail string `json:"detail,omitempty"`
	Count  uint64 `json:"count"`
	// Example is a decision id.
	Example string `json:"example,omitempty"`
}

// Mismatch is a recorded decision that the same content does not make again.
type Mismatch struct {
	DecisionID string    `json:"decision_id"`
	Time       time.Time `json:"time"`
	Recorded   Answer    `json:"recorded"`
	Now        Answer    `json:"now"`
}

// Answer is a decision in a report.
type Answer struct {
	Verdict string   `json:"verdict"`
	Tier    string   `json:"tier"`
	Rules   []string `json:"rules"`
	Reason  string   `json:"reason,omitempty"`
}

func answerOf(d *policy.Decision) Answer {
	a := Answer{Verdict: d.Verdict.String(), Tier: d.Tier.String(), Rules: []string{}, Reason: strings.Clone(d.Reason)}
	for _, r := range d.Rules {
		a.Rules = append(a.Rules, strings.Clone(r.ID))
	}
	return a
}

// Example is one decision of a group.
type Example struct {
	DecisionID string    `json:"decision_id"`
	Time       time.Time `json:"time"`
	Path       string    `json:"path,omitempty"`
	Baseline   Answer    `json:"baseline"`
	Candidate  Answer    `json:"candidate"`
	// Modes that the answers are applied in.
	BaselineMode  string `json:"baseline_mode"`
	CandidateMode string `json:"candidate_mode"`
}

func newReport() *Report {
	return &Report{
		Mismatches: []Mismatch{}, Reasons: []Reason{}, Groups: []Group{},
		groups: newGroups(maxGroups), reasons: map[[2]string]*Reason{},
	}
}

// add counts one record.
func (r *Report) add(index uint64, rec *Recorded, res *result) {
	r.Records++
	switch res.reason {
	case "":
	case Refused:
		r.Refused++
		return
	default:
		r.NotReplayable++
		r.because(res.reason, res.detail, rec.ID)
		return
	}
	r.Replayed++
	at := rec.Input.Time
	if r.from.IsZero() || at.Before(r.from) {
		r.from = at
	}
	if at.After(r.to) {
		r.to = at
	}
	r.BaselineVerdicts.add(res.baseline.Verdict)
	r.CandidateVerdicts.add(res.candidate.Verdict)
	switch {
	case res.disagrees && res.sameBy:
		r.Mismatched++
		if len(r.Mismatches) < maxMismatches {
			r.Mismatches = append(r.Mismatches, Mismatch{strings.Clone(rec.ID), at, answerOf(&rec.Decision), answerOf(&res.baseline)})
		}
	case res.disagrees:
		r.Drifted++
	}
	*r.counter(res.change)++
	if res.change == Same {
		return
	}
	blocked, passing := res.passed() && !res.passes(), !res.passed() && res.passes()
	if blocked {
		r.Blocked++
	}
	if passing {
		r.Passing++
	}
	if g := r.groups.find(rec.Input, res); g == nil {
		r.Ungrouped++
	} else {
		g.count(index, rec, res, blocked, passing)
	}
}

func (r *Report) counter(c Change) *uint64 {
	switch c {
	case NewlyAllowed:
		return &r.NewlyAllowed
	case NewlyDenied:
		return &r.NewlyDenied
	case NewlyUndefined:
		return &r.NewlyUndefined
	case NewlyError:
		return &r.NewlyError
	case ModeChanged:
		return &r.ModeChanged
	case TierChanged:
		return &r.TierChanged
	case RulesChanged:
		return &r.RulesChanged
	}
	return &r.Same
}

func (r *Report) because(reason, detail, id string) {
	if len(detail) > maxDetail {
		detail = detail[:maxDetail]
	}
	key := [2]string{reason, detail}
	if r.reasons[key] == nil && len(r.reasons) >= maxReasons {
		key[1] = ""
	}
	if r.reasons[key] == nil {
		key[1] = strings.Clone(key[1])
		r.reasons[key] = &Reason{Reason: reason, Detail: key[1], Example: strings.Clone(id)}
	}
	r.reasons[key].Count++
}

// finish puts what was counted in order: the gravest change first, then the
// most frequent.
func (r *Report) finish() {
	if r.Replayed > 0 {
		r.From, r.To = &r.from, &r.to
	}
	for _, reason := range r.reasons {
		r.Reasons = append(r.Reasons, *reason)
	}
	slices.SortFunc(r.Reasons, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Detail, b.Detail))
	})
	r.Groups = r.groups.sorted()
}

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/writ-dev/writ/policy/simulate"
)

// shownGroups is how many groups of a change a person is shown without --all.
const shownGroups = 10

// simulationView writes the result for a person.
type simulationView struct {
	simulationInfo
	examples, all bool
}

func (v *simulationView) write(w io.Writer) error {
	p := &printer{w: w}
	v.head(p)
	v.counts(p)
	v.groups(p)
	v.notReplayable(p)
	v.mismatches(p)
	if len(v.Failed) > 0 {
		p.line("")
		p.line("failed: %s", strings.Join(v.Failed, ", "))
	}
	return p.err
}

func (r policyRef) String() string {
	if r.Revision != "" {
		return "revision " + r.Revision
	}
	return r.Source + " (" + r.Digest[:12] + ")"
}

func (v *simulationView) head(p *printer) {
	baseline := "the decisions as recorded"
	if v.Baseline != nil {
		baseline = v.Baseline.String()
	}
	p.line("candidate %s, compared with %s", v.Candidate, baseline)
	line := fmt.Sprintf("%d of %d decisions replayed", v.Replayed, v.Records-v.Refused)
	if v.From != nil {
		line += fmt.Sprintf(", %s to %s", v.From.UTC().Format(time.RFC3339), v.To.UTC().Format(time.RFC3339))
	}
	p.line("%s", line)
}

func (v *simulationView) counts(p *printer) {
	p.line("")
	p.table(func(w io.Writer) {
		for _, row := range []struct {
			name  string
			count uint64
			say   string
			// always shown, as the others are when there are any.
			always bool
		}{
			{"newly allowed", v.NewlyAllowed, "", true},
			{"newly denied", v.NewlyDenied, "", true},
			{"newly undefined", v.NewlyUndefined, "not allowed either", true},
			{"newly error", v.NewlyError, "not allowed either", true},
			{"mode changed", v.ModeChanged, "the same verdict, enforced on one side only", false},
			{"other tier", v.TierChanged, "the same verdict", false},
			{"other rules", v.RulesChanged, "the same verdict", false},
			{"same", v.Same, "", true},
			{"not replayable", v.NotReplayable, "", v.NotReplayable > 0},
			{"refused", v.Refused, "before policy was asked", false},
		} {
			if row.always || row.count > 0 {
				fmt.Fprintf(w, "  %s\t%d\t%s\n", row.name, row.count, row.say)
			}
		}
	})
	if v.Blocked+v.Passing > 0 {
		p.line("")
		p.line("for callers: %d that passed would be blocked, %d that did not would pass", v.Blocked, v.Passing)
	}
}

// titles of changes, in their order.
var changeTitles = []struct {
	change simulate.Change
	title  string
}{
	{simulate.NewlyAllowed, "newly allowed"},
	{simulate.NewlyDenied, "newly denied"},
	{simulate.NewlyUndefined, "newly undefined"},
	{simulate.NewlyError, "newly error"},
	{simulate.ModeChanged, "mode changed"},
	{simulate.TierChanged, "other tier"},
	{simulate.RulesChanged, "other rules"},
}

func (v *simulationView) groups(p *printer) {
	for _, t := range changeTitles {
		var here []simulate.Group
		for _, g := range v.Groups {
			if g.Change == t.change {
				here = append(here, g)
			}
		}
		if len(here) == 0 {
			continue
		}
		shown := here
		if !v.all && len(shown) > shownGroups {
			shown = shown[:shownGroups]
		}
		p.line("")
		p.line("%s:", t.title)
		if v.examples {
			for _, g := range shown {
				v.example(p, &g)
			}
		} else {
			p.table(func(w io.Writer) {
				for _, g := range shown {
					fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\n", g.Count, callerText(g.Source), fit(g.Service, 30), routeText(&g), v.why(&g))
				}
			})
		}
		if n := len(here) - len(shown); n > 0 {
			p.line("  and %d more groups (--all)", n)
		}
	}
	if v.Ungrouped > 0 {
		p.line("")
		p.line("%d more changes, in more groups than are kept apart", v.Ungrouped)
	}
}

// why is what decides on both sides, short.
func (v *simulationView) why(g *simulate.Group) string {
	was, is := g.Example.Baseline, g.Example.Candidate
	side := func(a simulate.Answer, mode string) string {
		text := a.Verdict
		switch {
		case len(a.Rules) > 0:
			text += " " + fit(a.Rules[0], 24)
		case a.Tier != "":
			text += " " + a.Tier
		}
		if len(a.Rules) > 1 {
			text += fmt.Sprintf("+%d", len(a.Rules)-1)
		}
		if mode == "observe" {
			text += " (observed)"
		}
		return text
	}
	return side(was, g.Example.BaselineMode) + " -> " + side(is, g.Example.CandidateMode)
}

func (v *simulationView) example(p *printer, g *simulate.Group) {
	p.line("  %d  %s  %s  %s", g.Count, callerText(g.Source), g.Service, routeText(g))
	e := &g.Example
	p.line("      such as %s at %s", e.DecisionID, e.Time.UTC().Format(time.RFC3339Nano))
	if e.Path != "" && e.Path != g.Route {
		p.line("      path %s", fit(e.Path, 100))
	}
	for _, side := range []struct {
		name, mode string
		answer     simulate.Answer
	}{{"baseline", e.BaselineMode, e.Baseline}, {"candidate", e.CandidateMode, e.Candidate}} {
		text := side.answer.Verdict + " by " + side.answer.Tier
		if len(side.answer.Rules) > 0 {
			text += ": " + fit(strings.Join(side.answer.Rules, ", "), 100)
		} else if side.answer.Reason != "" {
			text += ": " + fit(side.answer.Reason, 100)
		}
		if side.mode == "observe" {
			text += " (observed: passes)"
		}
		p.line("      %-9s  %s", side.name, text)
	}
}

// reasonTexts say why something is not replayable.
var reasonTexts = map[string]string{
	simulate.Erased:          "the record was erased",
	simulate.Malformed:       "the record cannot be what an enforcement point wrote",
	simulate.Omitted:         "withheld from the record, or too large for it",
	simulate.NotRecorded:     "read now, and not by the policy that decided: not on record",
	simulate.UnknownRevision: "decided by a revision that is not known here, so that it is not known which headers are on record",
	simulate.LooksOutside:    "asks outside of the input, which a simulation does not",
	simulate.NotByPolicy:     "denied by the enforcement point itself, so that there is nothing to compare with",
}

func (v *simulationView) notReplayable(p *printer) {
	if len(v.Reasons) == 0 {
		return
	}
	p.line("")
	p.line("not replayable:")
	for _, r := range v.Reasons {
		text := reasonTexts[r.Reason]
		if r.Detail != "" {
			text += ": " + fit(r.Detail, 100)
		}
		if v.examples && r.Example != "" {
			text += " (such as " + r.Example + ")"
		}
		p.line("  %d  %s", r.Count, text)
	}
}

func (v *simulationView) mismatches(p *printer) {
	if v.Drifted > 0 {
		p.line("")
		p.line("%d were decided otherwise when they were recorded, by another revision than the baseline", v.Drifted)
	}
	if v.Mismatched == 0 {
		return
	}
	p.line("")
	p.line("the baseline decides %d otherwise than it did when they were recorded: do not trust this result", v.Mismatched)
	for _, m := range v.Mismatches {
		p.line("  %s  %s  recorded %s by %s, now %s by %s", m.DecisionID, m.Time.UTC().Format(time.RFC3339),
			m.Recorded.Verdict, m.Recorded.Tier, m.Now.Verdict, m.Now.Tier)
	}
}

// table aligns what f writes, with what callers chose made safe.
func (p *printer) table(f func(io.Writer)) {
	if p.err != nil {
		return
	}
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	f(tw)
	tw.Flush()
	for line := range strings.Lines(b.String()) {
		p.line("%s", strings.TrimRight(line, " \n"))
	}
}

func callerText(id string) string {
	if id == "" {
		return "(no identity)"
	}
	return fit(id, 60)
}

func routeText(g *simulate.Group) string {
	if g.Method == "" {
		return "(connection)"
	}
	return fit(g.Method, 16) + " " + fit(g.Route, 60)
}

// fit cuts a text to a number of characters, and keeps the end of it, which
// tells more apart. It is safe for a table.
func fit(s string, width int) string {
	s = terminalSafe(s)
	if n := utf8.RuneCountInString(s); n > width {
		r := []rune(s)
		return "…" + string(r[n-width+1:])
	}
	return s
}

// progress tells a person at a terminal how far it is.
type progress struct {
	w    io.Writer
	last time.Time
	any  bool
}

func newProgress(w io.Writer) *progress {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		w = nil
	}
	return &progress{w: w}
}

func (p *progress) show(records uint64) {
	if p.w == nil || time.Since(p.last) < 200*time.Millisecond {
		return
	}
	p.last, p.any = time.Now(), true
	fmt.Fprintf(p.w, "\r\x1b[K%d decisions", records)
}

func (p *progress) done() {
	if p.any {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

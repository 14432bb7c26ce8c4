package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/policy/opa"
)

// explanationInfo is the JSON form of an explanation.
type explanationInfo struct {
	decisionInfo
	// Revision explained by, where it is the control plane's.
	Revision   string        `json:"revision,omitempty"`
	Recorded   *recordedInfo `json:"recorded,omitempty"`
	Decided    []outcomeInfo `json:"decided"`
	Overruled  []outcomeInfo `json:"overruled"`
	Nearest    []outcomeInfo `json:"nearest"`
	Failed     []outcomeInfo `json:"failed"`
	Incomplete bool          `json:"incomplete"`
}

// recordedInfo is the decision as it is on record.
type recordedInfo struct {
	DecisionID string `json:"decision_id"`
	Time       string `json:"time"`
	decisionInfo
	Revision string `json:"revision"`
	// Missing is what the record does not hold as it was.
	Missing []string `json:"missing"`
	// Same reports whether it is decided the same again.
	Same bool `json:"same"`
}

type outcomeInfo struct {
	Tier       string          `json:"tier,omitempty"`
	ID         string          `json:"id"`
	File       string          `json:"file"`
	Line       int             `json:"line"`
	Source     string          `json:"source"`
	Conditions []conditionInfo `json:"conditions,omitempty"`
	NotReached int             `json:"not_reached,omitempty"`
}

type conditionInfo struct {
	File    string        `json:"file"`
	Line    int           `json:"line"`
	Column  int           `json:"column"`
	Text    string        `json:"text"`
	Values  []valueInfo   `json:"values,omitempty"`
	Error   string        `json:"error,omitempty"`
	Because []outcomeInfo `json:"because,omitempty"`
}

type valueInfo struct {
	Text  string `json:"text"`
	Value string `json:"value"`
}

func outcomesFrom(list []opa.RuleOutcome) []outcomeInfo {
	infos := make([]outcomeInfo, 0, len(list))
	for _, o := range list {
		info := outcomeInfo{ID: o.Rule.ID, File: o.Rule.File, Line: o.Rule.Line, Source: o.Source, NotReached: o.NotReached}
		if o.Tier != 0 {
			info.Tier = o.Tier.String()
		}
		for _, c := range o.Conditions {
			condition := conditionInfo{File: c.File, Line: c.Line, Column: c.Column, Text: c.Text, Error: c.Error, Because: outcomesFrom(c.Because)}
			for _, v := range c.Values {
				condition.Values = append(condition.Values, valueInfo(v))
			}
			info.Conditions = append(info.Conditions, condition)
		}
		infos = append(infos, info)
	}
	return infos
}

func (x *explanation) explained(why *opa.Explanation, revision string, recorded *recordedDecision) error {
	result := explanationInfo{
		decisionInfo: decisionInfoFrom(&why.Decision),
		Revision:     revision,
		Decided:      outcomesFrom(why.Decided),
		Overruled:    outcomesFrom(why.Overruled),
		Nearest:      outcomesFrom(why.Nearest),
		Failed:       outcomesFrom(why.Failed),
		Incomplete:   why.Incomplete,
	}
	if recorded != nil {
		result.Recorded = &recordedInfo{
			DecisionID: recorded.id, Time: recorded.Input.Time.UTC().Format(time.RFC3339Nano),
			decisionInfo: decisionInfoFrom(&recorded.Decision), Revision: recorded.Decision.Revision.String(),
			Missing: append([]string{}, recorded.Missing...), Same: audit.SameDecision(&recorded.Decision, &why.Decision),
		}
	}
	return x.emit(result, func(w io.Writer) error {
		p := printer{w: w, dir: x.source}
		p.explanation(&result)
		return p.err
	})
}

func (p *printer) explanation(x *explanationInfo) {
	by := ""
	if x.Revision != "" {
		by = ", revision " + x.Revision
	}
	if r := x.Recorded; r != nil {
		p.line("on record: %s by %s, revision %s, at %s", r.Verdict, r.Tier, r.Revision, r.Time)
		if len(r.Missing) > 0 {
			p.line("not on record: %s", strings.Join(r.Missing, ", "))
		}
		if !r.Same {
			p.line("decided again, it is not the same:")
		}
	}
	p.line("%s by %s%s", x.Verdict, x.Tier, by)
	if x.Reason != "" {
		p.line("reason: %s", x.Reason)
	}
	for _, section := range []struct {
		title string
		list  []outcomeInfo
	}{
		{"decided by", x.Decided},
		{"ended in an error", x.Failed},
		{"would have allowed it", x.Overruled},
		{"nearest to allow it", x.Nearest},
	} {
		if len(section.list) > 0 {
			p.line("")
			p.line("%s:", section.title)
			p.outcomes(section.list, "  ")
		}
	}
	if x.Incomplete {
		p.line("")
		p.line("the time was over before every rule was looked at")
	}
}

// printer writes lines until one fails.
type printer struct {
	w   io.Writer
	dir string
	err error
}

// at is a place that an editor can open, but in the library, which is part of
// the program.
func (p *printer) at(file string, line int) string {
	if opa.IsOwn(file) {
		return fmt.Sprintf("%s:%d", file, line)
	}
	return fmt.Sprintf("%s:%d", fileIn(p.dir, file), line)
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, terminalSafe(fmt.Sprintf(format, args...)))
	}
}

func (p *printer) outcomes(list []outcomeInfo, indent string) {
	for _, o := range list {
		at := ""
		if o.File != "" {
			at = p.at(o.File, o.Line) + "  "
		}
		p.line("%s%s%s", indent, at, o.ID)
		if o.Source != "" {
			p.line("%s    %s", indent, o.Source)
		}
		for _, c := range o.Conditions {
			p.condition(c, indent+"  ")
		}
		if o.NotReached > 0 {
			p.line("%s  and %d more that depend on these", indent, o.NotReached)
		}
	}
}

func (p *printer) condition(c conditionInfo, indent string) {
	p.line("%s✗ %s  %s", indent, p.at(c.File, c.Line), c.Text)
	if c.Error != "" {
		p.line("%s    error: %s", indent, c.Error)
	}
	for _, v := range c.Values {
		if strings.TrimSpace(v.Text) == c.Text && len(c.Because) > 0 {
			continue // The helper itself: its conditions follow.
		}
		p.line("%s    %s was %s", indent, v.Text, v.Value)
	}
	p.outcomes(c.Because, indent+"    ")
}

package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/export"
)

func newAuditCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read and verify the record of what happened",
		Long: `Read the audit record of a control plane, hand it to other tools, and verify it
offline. Each read is itself recorded.`,
	}
	cmd.AddCommand(newAuditTailCmd(a), newAuditQueryCmd(a), newAuditExportCmd(a), newAuditVerifyCmd(a))
	return cmd
}

// auditFilter is the flags that choose records.
type auditFilter struct {
	since, until, source, destination, decisionID, path string
	outcomes, kinds                                     []string
}

func (f *auditFilter) flags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.since, "since", "", "from this time on: RFC 3339, or a duration back from now (15m)")
	fl.StringVar(&f.until, "until", "", "before this time, written as for --since")
	fl.StringVar(&f.source, "source", "", "SPIFFE ID of the source; a * at the end is a prefix")
	fl.StringVar(&f.destination, "destination", "", "name or SPIFFE ID of the destination; a * at the end is a prefix")
	fl.StringVar(&f.decisionID, "decision-id", "", "decision id, as in the response header writ-decision-id")
	fl.StringVar(&f.path, "path-prefix", "", "beginning of the request's path")
	fl.StringSliceVar(&f.outcomes, "outcome", nil, "outcomes: "+strings.Join(outcomeNames(), ", "))
	fl.StringSliceVar(&f.kinds, "kind", nil, "kinds of event: "+strings.Join(kindNames(), ", "))
	for flag, words := range map[string][]string{"outcome": outcomeNames(), "kind": kindNames()} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	for _, flag := range []string{"since", "until", "source", "destination", "decision-id", "path-prefix"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
}

func kindNames() []string {
	var names []string
	for n := range len(auditv1.Kind_name) - 1 {
		names = append(names, export.KindName(auditv1.Kind(n+1)))
	}
	return names
}

func outcomeNames() []string {
	var names []string
	for n := range len(auditv1.Outcome_name) - 1 {
		names = append(names, export.OutcomeName(auditv1.Outcome(n+1)))
	}
	return names
}

func (f *auditFilter) proto(now time.Time) (*auditv1.Filter, error) {
	out := &auditv1.Filter{Source: f.source, Destination: f.destination, DecisionId: f.decisionID, PathPrefix: f.path}
	var err error
	if out.From, err = instant("--since", f.since, now); err != nil {
		return nil, err
	}
	if out.To, err = instant("--until", f.until, now); err != nil {
		return nil, err
	}
	for _, name := range f.kinds {
		n, ok := auditv1.Kind_value["KIND_"+strings.ToUpper(name)]
		if !ok || n == 0 {
			return nil, fmt.Errorf("--kind %q: want one of %s", name, strings.Join(kindNames(), ", "))
		}
		out.Kinds = append(out.Kinds, auditv1.Kind(n))
	}
	for _, name := range f.outcomes {
		n, ok := auditv1.Outcome_value["OUTCOME_"+strings.ToUpper(name)]
		if !ok || n == 0 {
			return nil, fmt.Errorf("--outcome %q: want one of %s", name, strings.Join(outcomeNames(), ", "))
		}
		out.Outcomes = append(out.Outcomes, auditv1.Outcome(n))
	}
	return out, nil
}

// instant reads a time, in nanoseconds since the Unix epoch; 0 is none.
func instant(flag, s string, now time.Time) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d).UnixNano(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, fmt.Errorf("%s %q: want a time such as 2026-01-31T15:04:05Z, or a duration such as 15m", flag, s)
	}
	return t.UnixNano(), nil
}

// writeEvent writes a record as one line for a person.
func writeEvent(w io.Writer, s *auditv1.StoredRecord) error {
	r := export.FromStored(s)
	var what []string
	add := func(format string, args ...any) { what = append(what, fmt.Sprintf(format, args...)) }
	switch {
	case r.GapCause != "":
		count := "an unknown number of"
		if r.GapCount > 0 {
			count = fmt.Sprint(r.GapCount)
		}
		add("%s lost %s records: %s", r.Stream, count, r.GapCause)
	case r.ActionVerb != "":
		add("%s %s %s", r.ActionActor, r.ActionVerb, r.ActionObject)
		if r.ActionObjectID != "" {
			add("%s", r.ActionObjectID)
		}
		for _, d := range r.ActionDetails {
			add("%s=%s", d.Name, strings.Join(d.Values, ","))
		}
	case r.Raw != "":
		add("cannot be read: %s", r.Error)
	default:
		source := r.SourceID
		if source == "" {
			source = "(no identity)"
		}
		add("%s -> %s", source, firstOf(r.DestinationService, r.DestinationID, "?"))
		if r.Method != "" {
			add("%s", r.Method)
		}
		if r.Path != "" {
			add("%s", r.Path)
		}
		for _, rule := range r.Rules {
			add("rule=%s", rule.ID)
		}
		if r.Tier != "" {
			add("tier=%s", r.Tier)
		}
		if r.Mode == "observe" {
			add("observed")
		}
	}
	if r.Reason != "" {
		add("(%s)", r.Reason)
	}
	_, err := fmt.Fprintf(w, "%s  %-10s  %-9s  %s  %s\n", firstOf(r.Time, r.Received), r.Kind, r.Outcome, r.DecisionID, terminalSafe(strings.Join(what, " ")))
	return err
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// terminalSafe keeps what callers put into a path from reaching the terminal as a
// command to it, and shows where something is that cannot be seen: what looks
// like a path to whoever approves a policy is that path.
func terminalSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return '\uFFFD'
		}
		return r
	}, s)
}

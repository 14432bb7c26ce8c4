package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy/simulate"
)

// simulation is what the flags of simulate say.
type simulation struct {
	candidate, baseline string
	from                sourceFlags
	record              string
	since, until        string
	source, destination string
	failOn              []string
	engine              string
	limit               uint64
	examples, allGroups bool
}

// What --fail-on can name, and what it looks at.
var failures = []struct {
	name string
	hit  func(*simulate.Report) bool
}{
	{"newly-allowed", func(r *simulate.Report) bool { return r.NewlyAllowed > 0 }},
	{"newly-denied", func(r *simulate.Report) bool { return r.NewlyDenied > 0 }},
	{"error", func(r *simulate.Report) bool { return r.NewlyError+r.NewlyUndefined > 0 }},
	{"blocked", func(r *simulate.Report) bool { return r.Blocked > 0 }},
	{"mismatch", func(r *simulate.Report) bool { return r.Mismatched > 0 }},
	{"not-replayable", func(r *simulate.Report) bool { return r.NotReplayable > 0 }},
	{"nothing-replayed", func(r *simulate.Report) bool { return r.Replayed == 0 }},
}

func failureNames() (names []string) {
	for _, f := range failures {
		names = append(names, f.name)
	}
	return names
}

// baselineRecorded compares with the decisions as they were recorded.
const baselineRecorded = "recorded"

func newSimulateCmd(a *app) *cobra.Command {
	var s simulation
	cmd := &cobra.Command{
		Use:   "simulate --candidate SOURCE",
		Short: "Replay recorded requests through a policy that is not in force",
		Long: `Decide recorded requests again, at the time they were decided, by a candidate
policy and by a baseline, and tell what would change: what is newly allowed,
denied, left undefined or fails, for which caller, on which route, and by which
rules. What the record does not hold is not guessed; such a request counts as
not replayable, with the reason.

The record is the control plane's, or with --record a ledger's directory, an
archive of it, or an export (jsonl). The baseline is the revision in force, or
with --record the decisions as they were recorded.

` + sourceHelp + `

Exit codes: 0, or 3 when something of --fail-on was found; 2 when the candidate
has problems; 1 when it could not be simulated.`,
		Example: `  policyctl simulate --candidate policy/ --from 24h
  policyctl simulate --candidate policy/ -f mesh.yaml --destination orders --examples
  policyctl simulate --candidate policy/ --record events.jsonl --fail-on newly-allowed,blocked
  policyctl simulate --candidate policy/ --baseline 7`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.simulate(cmd.Context(), &s)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.candidate, "candidate", "", "SOURCE of the policy to try")
	f.StringVar(&s.baseline, "baseline", "", `number of a revision, a SOURCE, or "recorded"; default the revision in force`)
	f.StringVar(&s.record, "record", "", "ledger directory, archive (tar) or export (jsonl) to read instead of the control plane's record")
	f.StringVar(&s.since, "from", "", "from this time on: RFC 3339, or a duration back from now (24h)")
	f.StringVar(&s.until, "to", "", "before this time, written as for --from")
	f.StringVar(&s.source, "source", "", "SPIFFE ID of the caller; a * at the end is a prefix")
	f.StringVar(&s.destination, "destination", "", "name or SPIFFE ID of the service; a * at the end is a prefix")
	f.StringSliceVar(&s.failOn, "fail-on", nil, "end with exit code 3 on any of: "+strings.Join(failureNames(), ", "))
	f.StringVar(&s.engine, "engine", engineCompiled, "engine that decides: compiled, with OPA for the rest, or topdown, OPA alone")
	f.Uint64Var(&s.limit, "limit", 0, "most decisions to replay; 0 is all")
	f.BoolVar(&s.examples, "examples", false, "show a decision of each group")
	f.BoolVar(&s.allGroups, "all", false, "show all groups")
	s.from.add(cmd)
	_ = cmd.MarkFlagRequired("candidate")
	_ = cmd.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions(failureNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions([]string{engineCompiled, engineTopdown}, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"from", "to", "source", "destination", "limit"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

// check reads what the flags say.
func (s *simulation) check(now time.Time) (filter *auditv1.Filter, err error) {
	for _, name := range s.failOn {
		if !slices.Contains(failureNames(), name) {
			return nil, fmt.Errorf("--fail-on %q: want one of %s", name, strings.Join(failureNames(), ", "))
		}
	}
	if s.engine != engineCompiled && s.engine != engineTopdown {
		return nil, fmt.Errorf("--engine %q: want %s or %s", s.engine, engineCompiled, engineTopdown)
	}
	// A record that was erased has no kind.
	filter = &auditv1.Filter{
		Kinds:  []auditv1.Kind{auditv1.Kind_KIND_DECISION, auditv1.Kind_KIND_UNSPECIFIED},
		Source: s.source, Destination: s.destination,
	}
	if filter.From, err = instant("--from", s.since, now); err != nil {
		return nil, err
	}
	if filter.To, err = instant("--to", s.until, now); err != nil {
		return nil, err
	}
	if filter.To != 0 && filter.To <= filter.From {
		return nil, errors.New("--to is not after --from")
	}
	return filter, nil
}

func (a *app) simulate(ctx context.Context, s *simulation) error {
	now := time.Now()
	filter, err := s.check(now)
	if err != nil {
		return err
	}
	contents := &contents{app: a, offline: s.record != "", engine: s.engine, known: map[[32]byte]*prepared{}}
	candidate, err := contents.candidate(ctx, s)
	if err != nil {
		return err
	}
	baseline, err := contents.baseline(ctx, s)
	if err != nil {
		return fmt.Errorf("baseline: %w", err)
	}
	cfg := simulate.Config{Candidate: candidate.side(), At: now, Agrees: audit.SameDecision, Limit: s.limit}
	needsReads := candidate.readsAny()
	if baseline != nil {
		side := baseline.side()
		cfg.Baseline = &side
		needsReads = needsReads || baseline.readsAny()
	}
	source, err := a.records(ctx, s.record, filter)
	if err != nil {
		return err
	}
	defer source.close()
	cfg.Next = source.next
	cfg.Open = func(r *simulate.Recorded) { openRecord(ctx, r, contents, needsReads) }
	progress := newProgress(a.stderr)
	cfg.Progress = progress.show
	report, err := simulate.Run(ctx, cfg)
	progress.done()
	if err != nil {
		return err
	}
	return a.simulated(s, candidate, baseline, report)
}

// whyNothing says why there was nothing to replay.
func (s *simulation) whyNothing(candidate, baseline *prepared, report *simulate.Report) string {
	if report.Records > 0 {
		return fmt.Sprintf("none of %d records can be", report.Records)
	}
	names, ids := map[string]bool{}, map[string]bool{}
	for _, p := range []*prepared{candidate, baseline} {
		if p == nil {
			continue
		}
		maps.Copy(ids, p.ids)
		for name := range p.snapshot.Services {
			names[name] = true
		}
	}
	why := "no decision on record fits"
	for _, flag := range []struct {
		name, value string
		known       []string
	}{
		{"--destination", s.destination, slices.Collect(maps.Keys(names))},
		{"--source", s.source, nil},
	} {
		known := flag.known
		if len(known) == 0 || strings.HasPrefix(flag.value, "spiffe://") {
			known = slices.Collect(maps.Keys(ids))
		}
		prefix, many := strings.CutSuffix(flag.value, "*")
		there := func(name string) bool { return name == flag.value || many && strings.HasPrefix(name, prefix) }
		if flag.value != "" && !slices.ContainsFunc(known, there) {
			why += fmt.Sprintf("; %s %s is not in the catalogue%s", flag.name, flag.value, nearmiss.Hint(prefix, known))
		}
	}
	return why
}

// simulationInfo is the JSON form of the result.
type simulationInfo struct {
	Candidate policyRef  `json:"candidate"`
	Baseline  *policyRef `json:"baseline"`
	Engine    string     `json:"engine"`
	*simulate.Report
	// Failed are the words of --fail-on that hit.
	Failed []string `json:"failed"`
}

// policyRef says which policy one side is.
type policyRef struct {
	Source   string `json:"source"`
	Revision string `json:"revision,omitempty"`
	Digest   string `json:"digest"`
}

func (p *prepared) ref() policyRef {
	return policyRef{Source: p.name, Revision: p.revision, Digest: hex.EncodeToString(p.digest[:])}
}

func (a *app) simulated(s *simulation, candidate, baseline *prepared, report *simulate.Report) error {
	result := simulationInfo{Candidate: candidate.ref(), Engine: s.engine, Report: report, Failed: []string{}}
	if baseline != nil {
		ref := baseline.ref()
		result.Baseline = &ref
	}
	for _, f := range failures {
		if slices.Contains(s.failOn, f.name) && f.hit(report) {
			result.Failed = append(result.Failed, f.name)
		}
	}
	v := &simulationView{simulationInfo: result, examples: s.examples, all: s.allGroups}
	if err := a.emit(result, v.write); err != nil {
		return err
	}
	if report.Replayed == 0 {
		fmt.Fprintf(a.stderr, "policyctl: nothing was replayed, so that this says nothing about the policy: %s\n", terminalSafe(s.whyNothing(candidate, baseline, report)))
	}
	if len(result.Failed) > 0 {
		return &exitError{code: 3}
	}
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

// glassFile is the data file that break-glass keeps: an entry by id.
const glassFile = "writ/break_glass/data.json"

type glassEntry struct {
	Service   string    `json:"service"`
	SourceIDs []string  `json:"source_ids"`
	Granted   time.Time `json:"granted"`
	Expires   time.Time `json:"expires"`
	Approvers []string  `json:"approvers"`
	Ticket    string    `json:"ticket"`
}

// glass is what the flags of break-glass say.
type glass struct {
	entry                 glassEntry
	id, end, key, message string
	publisher, sources    string
	allowed               time.Duration
	now                   time.Time
	dropped               []string
	problems              []policy.Problem
	proposal              *policyv1.Proposal
	inForce               *policyv1.Revision
}

func newPolicyBreakGlassCmd(a *app) *cobra.Command {
	var g glass
	cmd := &cobra.Command{
		Use:   "break-glass",
		Short: "Propose a short allow that two people stand for, or end one",
		Long: `Add a break-glass entry to your part of what is in force, sign it, and propose
it: it allows the sources everything at the service, above all but absolute
guardrails, from now on and for an hour at most. Where approvers are configured
it takes the signatures of those whom it names. Entries that have expired are
dropped on the way.

Your key signs the part as the control plane shows it. Where sidecars trust
publishers and not the control plane, name your own directory with --sources, so
that you sign nothing but that and the entry.

--end removes an entry and puts that in force at once, or proposes it where
every activation takes approvals.`,
		Example: `  policyctl policy break-glass --service orders --source spiffe://example.org/svc/support \
    --ticket INC-7 --for 45m --approver ann --approver bob --key publisher.pem
  policyctl policy break-glass --end inc-7 --key publisher.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.check(); err != nil {
				return err
			}
			g.now = time.Now().UTC().Truncate(time.Second)
			if err := a.policyAdmin(func(c policyv1.AdminClient) error { return g.run(cmd.Context(), c) }); err != nil {
				return fmt.Errorf("policy break-glass: %w", err)
			}
			return a.glassDone(&g)
		},
	}
	f := cmd.Flags()
	f.StringVar(&g.entry.Service, "service", "", "service that is called")
	f.StringSliceVar(&g.entry.SourceIDs, "source", nil, "SPIFFE ID of who may call it; may be repeated")
	f.StringVar(&g.entry.Ticket, "ticket", "", "ticket that this belongs to")
	f.DurationVar(&g.allowed, "for", 30*time.Minute, "how long, an hour at most")
	f.StringSliceVar(&g.entry.Approvers, "approver", nil, "who stands for it; two different people")
	f.StringVar(&g.id, "id", "", "name of the entry (default: made of the ticket)")
	f.StringVar(&g.end, "end", "", "remove this entry")
	f.StringVar(&g.key, "key", "", "file with the publisher's private key (PEM, ECDSA P-256)")
	f.StringVar(&g.publisher, "publisher", "", "whose part it goes into, when there are several publishers")
	f.StringVar(&g.sources, "sources", "", "directory with your part, in place of what the control plane shows")
	f.StringVarP(&g.message, "message", "m", "", "why, for the list of revisions")
	_ = cmd.MarkFlagFilename("key", "pem")
	_ = cmd.MarkFlagDirname("sources")
	cmd.MarkFlagsMutuallyExclusive("sources", "publisher")
	for _, name := range []string{"service", "source", "ticket", "for", "approver", "id", "end", "publisher", "message"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

func (g *glass) check() error {
	if g.end != "" {
		return nil
	}
	switch {
	case g.entry.Service == "":
		return fmt.Errorf("--service: missing: which service is called")
	case len(g.entry.SourceIDs) == 0:
		return fmt.Errorf("--source: missing: the SPIFFE ID of who may call it")
	case g.entry.Ticket == "":
		return fmt.Errorf("--ticket: missing: what this belongs to")
	case len(g.entry.Approvers) < 2:
		return fmt.Errorf("--approver: want two different people")
	case g.allowed <= 0 || g.allowed > bundle.BreakGlassLimit:
		return fmt.Errorf("--for %v: want at most %v", g.allowed, bundle.BreakGlassLimit)
	}
	if g.id == "" {
		g.id = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_' {
				return r
			}
			return '-'
		}, strings.ToLower(g.entry.Ticket))
	}
	return nil
}

func (g *glass) run(ctx context.Context, c policyv1.AdminClient) error {
	part, err := g.before(ctx, c)
	if err != nil {
		return err
	}
	if part, err = g.change(part); err != nil {
		return err
	}
	var signatures []byte
	if g.key != "" {
		private, err := readPrivateKey(g.key)
		if err != nil {
			return err
		}
		if signatures, err = part.Sign(private, bundle.ScopeSources); err != nil {
			return err
		}
	}
	archive, err := part.Archive(signatures)
	if err != nil {
		return err
	}
	return g.send(ctx, c, archive)
}

// before is the part that is changed: the publisher's own files, or what the
// control plane says of them.
func (g *glass) before(ctx context.Context, c policyv1.AdminClient) (bundle.Content, error) {
	if g.sources != "" {
		return bundle.ReadDir(g.sources)
	}
	resp, err := c.Show(ctx, &policyv1.ShowRequest{}, largeAnswer())
	if err != nil {
		return nil, err
	}
	return g.part(resp.GetFiles())
}

// send proposes, or puts the end of an entry in force where that needs nobody
// else.
func (g *glass) send(ctx context.Context, c policyv1.AdminClient, archive []byte) error {
	if g.message == "" {
		g.message = "break-glass " + g.id
		if g.end != "" {
			g.message = "end of break-glass " + g.end
		}
	}
	from := sealed{signed: g.key != ""}
	if g.end != "" {
		resp, err := c.Push(ctx, &policyv1.PushRequest{Bundle: archive, Message: g.message})
		if status.Code(err) != codes.FailedPrecondition {
			g.inForce, g.problems = resp.GetRevision(), from.explain(problemsFrom(resp.GetProblems()))
			return err
		}
	}
	resp, err := c.Propose(ctx, &policyv1.ProposeRequest{Bundle: archive, Message: g.message})
	g.proposal, g.problems = resp.GetProposal(), from.explain(problemsFrom(resp.GetProblems()))
	return err
}

// part is what the publisher has in force: the one that keeps break-glass
// already, or the only one there is, unless a flag says which.
func (g *glass) part(files []*policyv1.SourceFile) (bundle.Content, error) {
	var names []string
	keeper := ""
	for _, f := range files {
		if !slices.Contains(names, f.GetPublisher()) {
			names = append(names, f.GetPublisher())
		}
		if f.GetPath() == glassFile {
			keeper = f.GetPublisher()
		}
	}
	switch {
	case g.publisher != "" && !slices.Contains(names, g.publisher):
		return nil, fmt.Errorf("--publisher: %q has no part in force%s", g.publisher, nearmiss.Hint(g.publisher, names))
	case g.publisher != "":
	case keeper != "":
		g.publisher = keeper
	case len(names) == 1:
		g.publisher = names[0]
	default:
		return nil, fmt.Errorf("--publisher: say whose part it goes into; in force are parts of %s", strings.Join(names, ", "))
	}
	return contentFrom(slices.DeleteFunc(slices.Clone(files), func(f *policyv1.SourceFile) bool { return f.GetPublisher() != g.publisher }))
}

// change adds or removes the entry, and drops those that have expired.
func (g *glass) change(part bundle.Content) (bundle.Content, error) {
	entries := map[string]glassEntry{}
	if text, ok := part.File(glassFile); ok {
		if err := json.Unmarshal(text, &entries); err != nil {
			return nil, fmt.Errorf("%s: %w", glassFile, err)
		}
	}
	for id, entry := range entries {
		if !g.now.Before(entry.Expires) && id != g.end {
			g.dropped = append(g.dropped, id)
			delete(entries, id)
		}
	}
	slices.Sort(g.dropped)
	if g.end != "" {
		if _, ok := entries[g.end]; !ok {
			return nil, fmt.Errorf("%s has no entry %q: what stands in another file is removed there", glassFile, g.end)
		}
		delete(entries, g.end)
	} else {
		if _, ok := entries[g.id]; ok {
			return nil, fmt.Errorf("there is an entry %q already: name this one with --id", g.id)
		}
		g.entry.Granted, g.entry.Expires = g.now, g.now.Add(g.allowed)
		entries[g.id] = g.entry
	}
	files := slices.DeleteFunc(slices.Clone(part), func(f bundle.File) bool { return f.Path == glassFile })
	if len(entries) > 0 {
		text, err := json.MarshalIndent(entries, "", "  ")
		if err != nil {
			return nil, err
		}
		files = append(files, bundle.File{Path: glassFile, Content: append(text, '\n')})
	}
	return bundle.NewContent(files)
}

func (a *app) glassDone(g *glass) error {
	result := struct {
		ID       string           `json:"id"`
		Ended    bool             `json:"ended"`
		Expires  *time.Time       `json:"expires,omitempty"`
		Dropped  []string         `json:"dropped"`
		Proposal *proposalInfo    `json:"proposal,omitempty"`
		Revision string           `json:"revision,omitempty"`
		Problems []policy.Problem `json:"problems"`
	}{ID: g.id + g.end, Ended: g.end != "", Dropped: notNil(g.dropped), Problems: g.problems}
	if g.end == "" {
		result.Expires = &g.entry.Expires
	}
	if g.proposal != nil {
		info := proposalInfoFrom(g.proposal)
		result.Proposal = &info
	}
	if g.inForce != nil {
		result.Revision = revisionText(g.inForce)
	}
	err := a.emit(result, func(w io.Writer) error {
		if len(g.problems) > 0 {
			return writeProblems(w, "", g.problems)
		}
		if g.inForce != nil {
			_, err := fmt.Fprintf(w, "break-glass %s has ended, revision %s is in force\n", terminalSafe(g.end), result.Revision)
			return err
		}
		what := "would end"
		if g.end == "" {
			what = "until " + g.entry.Expires.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "break-glass %s %s: proposal %d\n", terminalSafe(result.ID), what, result.Proposal.Number)
		return result.Proposal.writeNext(w)
	})
	if err != nil {
		return err
	}
	return refused(g.problems)
}

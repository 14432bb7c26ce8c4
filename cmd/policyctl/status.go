package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
)

// statusReport is the JSON form of policyctl status. Times are RFC 3339, and
// left out where unknown.
type statusReport struct {
	TrustDomain string            `json:"trust_domain"`
	Version     string            `json:"version"`
	Revision    string            `json:"revision"`
	Activated   *time.Time        `json:"revision_activated,omitempty"`
	Rollout     string            `json:"rollout,omitempty"`
	Components  []statusComponent `json:"components"`
	Alarms      []string          `json:"alarms"`
}

type statusComponent struct {
	Kind        string     `json:"kind"`
	Name        string     `json:"name"`
	SPIFFEID    string     `json:"spiffe_id"`
	Connected   bool       `json:"connected"`
	LastSeen    *time.Time `json:"last_seen,omitempty"`
	SVIDExpires *time.Time `json:"svid_expires,omitempty"`
	Version     string     `json:"version"`
	Revision    string     `json:"revision"`
	Activated   *time.Time `json:"revision_activated,omitempty"`
	Refused     string     `json:"refused,omitempty"`
	Engine      string     `json:"engine,omitempty"`
	Mode        string     `json:"mode,omitempty"`
	AuditLag    uint64     `json:"audit_lag"`
	NotEnforced []string   `json:"not_enforced"`
	Problems    []string   `json:"problems"`
}

func newStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show who runs, as whom, under which policy, and what is not enforced",
		Long: `Show everything that the control plane knows of: each component with its
SPIFFE ID, the expiry of its SVID, the policy revision it runs, how old that is and
what decides it (compiled, topdown, or mixed), and how many audit events it holds that are not yet durable at the
collector. Ways around enforcement that are reachable are listed below it.`,
		Example: `  policyctl status
  policyctl status -o json | jq '.components[] | select(.connected | not)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := policyv1.NewStatusClient(conn).Get(cmd.Context(), &policyv1.StatusRequest{})
			if err != nil {
				return fmt.Errorf("status: %w", rpcError(err))
			}
			report := newStatusReport(resp)
			return a.emit(report, func(w io.Writer) error { return report.write(w, time.Now()) })
		},
	}
}

func newStatusReport(resp *policyv1.StatusResponse) *statusReport {
	r := &statusReport{
		TrustDomain: resp.GetTrustDomain(), Version: resp.GetVersion(),
		Revision: revisionText(resp.GetRevision()), Activated: moment(resp.GetRevisionActivated()),
		Rollout: terminalSafe(resp.GetRollout()), Components: []statusComponent{}, Alarms: notNil(resp.GetAlarms()),
	}
	for _, c := range resp.GetComponents() {
		r.Components = append(r.Components, statusComponent{
			Kind: c.GetKind(), Name: c.GetName(), SPIFFEID: c.GetSpiffeId(), Connected: c.GetConnected(),
			LastSeen: moment(c.GetLastSeen()), SVIDExpires: moment(c.GetSvidExpires()), Version: c.GetVersion(),
			Revision: revisionText(c.GetRevision()), Activated: moment(c.GetRevisionActivated()), Refused: c.GetRefused(), Engine: terminalSafe(c.GetEngine()),
			Mode: c.GetMode(), AuditLag: c.GetAuditLag(), NotEnforced: notNil(c.GetNotEnforced()),
			Problems: notNil(c.GetProblems()),
		})
	}
	slices.SortStableFunc(r.Components, func(x, y statusComponent) int {
		return strings.Compare(x.Kind+" "+x.Name, y.Kind+" "+y.Name)
	})
	return r
}

func (r *statusReport) write(w io.Writer, now time.Time) error {
	fmt.Fprintf(w, "trust domain  %s\nwritd         %s\npolicy        %s, %s old\n", r.TrustDomain, r.Version, r.Revision, age(r.Activated, now))
	if r.Rollout != "" {
		fmt.Fprintf(w, "rollout       %s\n", r.Rollout)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "KIND\tNAME\tSPIFFE ID\tSTATE\tEXPIRES IN\tREVISION\tAGE\tENGINE\tAUDIT LAG\tMODE")
	for _, c := range r.Components {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", c.Kind, c.Name, dash(c.SPIFFEID), c.state(now),
			until(c.SVIDExpires, now), c.Revision, age(c.Activated, now), dash(c.Engine), c.AuditLag, dash(c.Mode))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	var problems, refused, banned, open []string
	for _, c := range r.Components {
		for _, problem := range c.Problems {
			problems = append(problems, c.Name+": "+problem)
		}
		if c.Kind == "agent" && c.Refused != "" {
			banned = append(banned, cmp.Or(c.Name, c.SPIFFEID)+": "+c.Refused)
		} else if c.Refused != "" {
			refused = append(refused, c.Name+": "+c.Refused)
		}
		for _, way := range c.NotEnforced {
			open = append(open, c.Name+": "+way)
		}
	}
	for _, list := range []struct {
		title string
		lines []string
	}{{"problems", problems}, {"last revision refused", refused}, {"agents refused", banned}, {"not enforced", open}, {"alarms", r.Alarms}} {
		if len(list.lines) > 0 {
			fmt.Fprintf(w, "\n%s\n  %s\n", list.title, strings.Join(list.lines, "\n  "))
		}
	}
	return nil
}

func (c *statusComponent) state(now time.Time) string {
	if c.Connected {
		return "connected"
	}
	return "gone " + age(c.LastSeen, now)
}

// moment is nanoseconds since the Unix epoch as a time, nil for 0.
func moment(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns).UTC()
	return &t
}

func age(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return span(now.Sub(*t))
}

func until(t *time.Time, now time.Time) string {
	switch {
	case t == nil:
		return "-"
	case !t.After(now):
		return "expired"
	}
	return span(t.Sub(now))
}

// span is a duration as a person says it: its two largest units.
func span(d time.Duration) string {
	d = max(d, 0)
	day := 24 * time.Hour
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}

func revisionText(r *policyv1.Revision) string {
	if r == nil {
		return "none"
	}
	rev := policy.Revision{Epoch: r.GetEpoch(), Number: r.GetNumber()}
	copy(rev.Digest[:], r.GetDigest())
	return rev.String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

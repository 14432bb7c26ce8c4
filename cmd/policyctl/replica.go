package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/identity/replicav1"
)

func newReplicaCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "replica",
		Aliases: []string{"replicas"},
		Short:   "List and remove the control planes that share a database",
	}
	cmd.AddCommand(newReplicaListCmd(a), newReplicaRemoveCmd(a))
	return cmd
}

// replicas runs call against the control plane.
func (a *app) replicas(call func(replicav1.AdminClient) error) error {
	return withClient(a, replicav1.NewAdminClient, func(c replicav1.AdminClient) error { return rpcError(call(c)) })
}

// replicaInfo is the JSON form of a replica.
type replicaInfo struct {
	Name     string     `json:"name"`
	State    string     `json:"state"`
	JoinedAt *time.Time `json:"joined_at,omitempty"`
	AliveAt  *time.Time `json:"alive_at,omitempty"`
	Self     bool       `json:"self"`
	// Authorities, but for those of this one.
	Authorities []authorityInfo `json:"authorities,omitempty"`
}

func authoritiesOf(list []*replicav1.Authority) (all []authorityInfo) {
	for _, a := range list {
		all = append(all, authorityInfo{Kind: a.Kind, ID: a.Id, Upstream: a.UpstreamKeyId, ExpiresAt: secondsTime(a.ExpiresAt)})
	}
	return all
}

// writeRemoved says what is left to do.
func writeRemoved(w io.Writer, name string, authorities []authorityInfo) error {
	fmt.Fprintf(w, "replica %s is removed, its authorities are tainted\n", name)
	for _, a := range authorities {
		if a.Upstream == "" {
			fmt.Fprintf(w, "to end what it signed: policyctl authority revoke %s %s\n", a.Kind, a.ID)
			continue
		}
		fmt.Fprintf(w, "NOT tainted: x509 authority %s, signed by the upstream's %s; it verifies until %s, or until that of the upstream is replaced and revoked\n", a.ID, a.Upstream, whenUTC(a.ExpiresAt))
	}
	return nil
}

func newReplicaListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the replicas there are and were",
		Long: `List the control planes with the issuer role that share this one's PostgreSQL
database. The state is live; away, not heard of for 30 seconds; lapsed, not for an
hour, so that its authorities are tainted until it is back; or removed.`,
		Example: `  policyctl replica list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := []replicaInfo{}
			err := a.replicas(func(c replicav1.AdminClient) error {
				resp, err := c.List(cmd.Context(), &replicav1.ListRequest{})
				for _, r := range resp.GetReplicas() {
					all = append(all, replicaInfo{Name: r.Name, State: r.State, JoinedAt: secondsTime(r.JoinedAt), AliveAt: secondsTime(r.AliveAt), Self: r.Self, Authorities: authoritiesOf(r.Authorities)})
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("replica list: %w", err)
			}
			result := struct {
				Replicas []replicaInfo `json:"replicas"`
			}{all}
			return a.emit(result, func(w io.Writer) error { return writeReplicas(w, all) })
		},
	}
}

func writeReplicas(w io.Writer, all []replicaInfo) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no replicas: the database is SQLite, which has one control plane")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "REPLICA\tSTATE\tJOINED\tHEARD OF")
	for _, r := range all {
		name := r.Name
		if r.Self {
			name += " (this one)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", name, r.State, whenUTC(r.JoinedAt), whenUTC(r.AliveAt))
	}
	return tw.Flush()
}

func whenUTC(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func newReplicaRemoveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "End a replica for good and taint its authorities",
		Long: `Remove a replica, for instance one whose machine is gone or was broken into. The
others taint its authorities, so that agents replace what it signed at once; if it
runs, it signs no more and ends. Its name does not come back.

Tainted authorities verify until they expire. If somebody may have the keys, revoke
them as soon as the agents are through (policyctl authority revoke). One that an
upstream signed can be neither tainted nor revoked by itself: the command says so.`,
		Example: `  policyctl replica remove control-3`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var authorities []authorityInfo
			err := a.replicas(func(c replicav1.AdminClient) error {
				resp, err := c.Remove(cmd.Context(), &replicav1.RemoveRequest{Name: args[0]})
				authorities = authoritiesOf(resp.GetAuthorities())
				return err
			})
			if err != nil {
				return fmt.Errorf("replica remove: %w", err)
			}
			result := struct {
				Removed     string          `json:"removed"`
				Authorities []authorityInfo `json:"authorities"`
			}{args[0], authorities}
			return a.emit(result, func(w io.Writer) error { return writeRemoved(w, args[0], authorities) })
		},
	}
}

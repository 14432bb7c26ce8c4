package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func newAgentCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "agent",
		Aliases: []string{"agents"},
		Short:   "List, ban and evict agents",
	}
	cmd.AddCommand(newAgentListCmd(a), newAgentBanCmd(a), newAgentEvictCmd(a))
	return cmd
}

// agentAdmin runs call against the control plane.
func (a *app) agentAdmin(call func(agentv1.AgentClient) error) error {
	return withClient(a, agentv1.NewAgentClient, call)
}

// agentInfo is the JSON form of an agent.
type agentInfo struct {
	ID          string     `json:"id"`
	Attestation string     `json:"attestation"`
	Serial      string     `json:"serial,omitempty"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"`
	Banned      bool       `json:"banned"`
	CanReattest bool       `json:"can_reattest"`
	Selectors   []string   `json:"selectors"`
}

func agentInfoFrom(pb *types.Agent) agentInfo {
	return agentInfo{
		ID: idText(pb.GetId()), Attestation: pb.GetAttestationType(), Serial: pb.GetX509SvidSerialNumber(),
		ExpiresAt: secondsTime(pb.GetX509SvidExpiresAt()), Banned: pb.GetBanned(), CanReattest: pb.GetCanReattest(),
		Selectors: notNil(selectors(&types.Entry{Selectors: pb.GetSelectors()})),
	}
}

func newAgentListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the agents that have joined",
		Example: `  policyctl agent list
  policyctl agent list --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			agents, err := a.findAgents(cmd.Context())
			if err != nil {
				return fmt.Errorf("agent list: %w", err)
			}
			result := struct {
				Agents []agentInfo `json:"agents"`
			}{agents}
			return a.emit(result, func(w io.Writer) error { return writeAgents(w, agents, time.Now()) })
		},
	}
}

// findAgents fetches all pages.
func (a *app) findAgents(ctx context.Context) ([]agentInfo, error) {
	all := []agentInfo{}
	err := a.agentAdmin(func(c agentv1.AgentClient) error {
		return pages(func(token string) (string, error) {
			resp, err := c.ListAgents(ctx, &agentv1.ListAgentsRequest{PageToken: token})
			for _, pb := range resp.GetAgents() {
				all = append(all, agentInfoFrom(pb))
			}
			return resp.GetNextPageToken(), err
		})
	})
	return all, err
}

func writeAgents(w io.Writer, agents []agentInfo, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "AGENT\tATTESTED BY\tSVID EXPIRES IN\tSTATE")
	for _, g := range agents {
		state := "active"
		switch {
		case g.Banned:
			state = "banned"
		case g.ExpiresAt != nil && !g.ExpiresAt.After(now):
			state = "expired"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", g.ID, dash(g.Attestation), until(g.ExpiresAt, now), state)
	}
	return tw.Flush()
}

func newAgentBanCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ban AGENT",
		Short: "End an agent's rights, and keep it from joining again",
		Long: `Ban an agent: its calls and streams end at once, it gets no further SVIDs, and what
was issued through it is revoked (policyctl svid revoke --agent). The ban lasts
until the agent is evicted.`,
		Example:           `  policyctl agent ban spiffe://example.org/spire/agent/join_token/ABCDEFGHIJKLMNOPQRSTUVWXYZ`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.endAgent(args[0], "ban", "banned", func(c agentv1.AgentClient, id *types.SPIFFEID) error {
				_, err := c.BanAgent(cmd.Context(), &agentv1.BanAgentRequest{Id: id})
				return err
			})
		},
	}
}

func newAgentEvictCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "evict AGENT",
		Short: "Forget an agent; it may join again with a new token",
		Long: `Evict an agent: its calls and streams end at once, and it and the alias that its
join token gave it are forgotten. It may join again. Evicting a banned agent
lifts the ban.`,
		Example:           `  policyctl agent evict spiffe://example.org/spire/agent/join_token/ABCDEFGHIJKLMNOPQRSTUVWXYZ`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.endAgent(args[0], "evict", "evicted", func(c agentv1.AgentClient, id *types.SPIFFEID) error {
				_, err := c.DeleteAgent(cmd.Context(), &agentv1.DeleteAgentRequest{Id: id})
				return err
			})
		},
	}
}

// endAgent runs call on one agent and says what was done to it.
func (a *app) endAgent(text, verb, done string, call func(agentv1.AgentClient, *types.SPIFFEID) error) error {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return fmt.Errorf("agent %s: %q is not the SPIFFE ID of an agent (policyctl agent list): %w", verb, text, err)
	}
	err = a.agentAdmin(func(c agentv1.AgentClient) error { return call(c, protoID(id)) })
	if err != nil {
		return fmt.Errorf("agent %s %s: %w", verb, text, rpcError(err))
	}
	result := map[string]string{"agent": text, "done": done}
	return a.emit(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %s\n", done, text)
		return err
	})
}

// completeAgents offers the IDs of agents, if the control plane answers.
func (a *app) completeAgents(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	agents, err := a.findAgents(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, g := range agents {
		ids = append(ids, g.ID+"\t"+g.Attestation)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

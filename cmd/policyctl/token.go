package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func newTokenCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "token",
		Aliases: []string{"tokens"},
		Short:   "Create join tokens for agents",
	}
	cmd.AddCommand(newTokenCreateCmd(a))
	return cmd
}

// tokenInfo is the JSON form of a new token; Token is empty when it went to
// File.
type tokenInfo struct {
	Token     string    `json:"token,omitempty"`
	File      string    `json:"file,omitempty"`
	SPIFFEID  string    `json:"spiffe_id,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
}

func newTokenCreateCmd(a *app) *cobra.Command {
	var spiffeID, file string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a join token, which lets one agent join once",
		Long: `Create a join token. It lets one agent join the trust domain, once, within its
time. It is a secret until then: give it to the agent by file, standard input or
environment (WRIT_JOIN_TOKEN), never on a command line.

With --spiffe-id the agent's node gets a name of its own besides, which stays the
same whichever token it joins with: entries hang on that.`,
		Example: `  policyctl token create --spiffe-id spiffe://example.org/node/laptop --file join.token
  policyctl token create --ttl 5m | ssh node7 'sudo tee /run/writ/join.token >/dev/null'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &agentv1.CreateJoinTokenRequest{}
			var err error
			if cmd.Flags().Changed("ttl") && ttl == 0 {
				return errors.New("token create: --ttl 0s: the token could never be used; leave it out for 10m")
			}
			if req.Ttl, err = secondsFlag("ttl", ttl); err != nil {
				return fmt.Errorf("token create: %w", err)
			}
			if spiffeID != "" {
				if req.AgentId, err = idFlag("spiffe-id", spiffeID); err != nil {
					return fmt.Errorf("token create: %w", err)
				}
			}
			var token *types.JoinToken
			err = a.agentAdmin(func(c agentv1.AgentClient) (err error) {
				token, err = c.CreateJoinToken(cmd.Context(), req)
				return err
			})
			if err != nil {
				return fmt.Errorf("token create: %w", rpcError(err))
			}
			info := tokenInfo{Token: token.GetValue(), SPIFFEID: spiffeID, ExpiresAt: time.Unix(token.GetExpiresAt(), 0).UTC()}
			if file != "" {
				if err := writeFile(file, []byte(token.GetValue()+"\n")); err != nil {
					return fmt.Errorf("token create: the token was made, but not written: %w", err)
				}
				info.Token, info.File = "", file
			}
			return a.emit(info, func(w io.Writer) error {
				if file != "" {
					_, err := fmt.Fprintf(a.stderr, "wrote a join token to %s, good once and until %s\n", file, info.ExpiresAt.Format(time.RFC3339))
					return err
				}
				_, err := fmt.Fprintln(w, info.Token)
				return err
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&spiffeID, "spiffe-id", "", "name for the agent's node besides its own, to hang entries on")
	fl.DurationVar(&ttl, "ttl", 0, "how long the token can be used, at most 720h (default 10m)")
	fl.StringVar(&file, "file", "", "write the token to this file, mode 0600, instead of standard output")
	return cmd
}

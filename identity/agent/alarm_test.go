package agent_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/issuer"
)

// An agent that comes back and is not wanted any more never presents the token
// that it has used itself, which would be an alarm of theft at the issuer.
func TestOwnTokenRaisesNoAlarm(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, r *agenttest.Issuer, id *types.SPIFFEID)
		want error
	}{
		{"banned", func(t *testing.T, r *agenttest.Issuer, id *types.SPIFFEID) {
			_, err := agentv1.NewAgentClient(r.Admin).BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: id})
			must(t, err)
		}, agent.ErrBanned},
		{"evicted", func(t *testing.T, r *agenttest.Issuer, id *types.SPIFFEID) {
			_, err := agentv1.NewAgentClient(r.Admin).DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: id})
			must(t, err)
		}, agent.ErrNoToken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			var alarms []identity.Act
			r := agenttest.StartConfig(t, time.Hour, issuer.Config{Emit: func(_ context.Context, act identity.Act) error {
				mu.Lock()
				defer mu.Unlock()
				if act.Kind == identity.ActAlarm {
					alarms = append(alarms, act)
				}
				return nil
			}})
			cfg := config(t, r)
			token := r.Token("/node/n1")
			n := startNode(t, cfg, token)
			id := n.agent.Status().ID
			must(t, n.stop())
			tc.do(t, r, &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()})
			for range 2 {
				a, err := agent.New(cfg, agent.Options{Token: func() (string, error) { return token, nil }, Log: slog.New(slog.DiscardHandler)})
				must(t, err)
				err = a.Run(t.Context())
				t.Log(err)
				if !errors.Is(err, tc.want) {
					t.Errorf("%v, want %v", err, tc.want)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for _, act := range alarms {
				t.Errorf("alarm: %s %s: %s", act.Verb, act.Object, act.Reason)
			}
		})
	}
}

// Command writ-sidecar stands beside one workload: it terminates and originates
// mTLS, decides each request, and records it.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/proxy"
)

func main() { os.Exit(daemon.Main(spec())) }

func spec() daemon.Spec[proxy.Config] {
	return daemon.Spec[proxy.Config]{
		Name:  "writ-sidecar",
		Short: "Writ's sidecar: mTLS, a decision and an event for each request of one workload",
		Long: `writ-sidecar stands beside one workload. Requests to the workload arrive by mTLS,
are decided by the verified policy in force, put on record, and then refused or
forwarded. Requests from the workload leave by mTLS to a peer whose SPIFFE ID is
checked. Its own SVID comes from any SPIFFE Workload API.`,
		Example: `  writ-sidecar --config /etc/writ/orders.yaml

  # check a file and stop
  writ-sidecar --config /etc/writ/orders.yaml --check`,
		Default:  proxy.Default,
		Flags:    func(*pflag.FlagSet, *proxy.Config) {},
		Validate: func(c *proxy.Config, at daemon.At) error { return errors.Join(c.Validate(at), checkPolicy(c, at)) },
		Run: func(ctx context.Context, _ *cobra.Command, cfg proxy.Config, log *slog.Logger) error {
			return serve(ctx, cfg, log)
		},
	}
}

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/attest/jointoken"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/tracing/otlp"
)

const example = `  # first start of a node: the token from a file, the issuer proven by its bundle
  writ-agent --config /etc/writ/agent.yaml --join-token-file /run/writ-token

  # without a file, the token from standard input
  policyctl token create --spiffe-id spiffe://example.org/node/n1 | writ-agent --trust-domain example.org \
      --server-address writ.example.org:8081 --trust-bundle bundle.pem \
      --data-dir /var/lib/writ-agent --socket /run/writ-agent/agent.sock --join-token-file -

  # every later start: the SVID kept in the data directory is enough
  writ-agent --config /etc/writ/agent.yaml

  # check a file and stop
  writ-agent --config /etc/writ/agent.yaml --check`

func spec() daemon.Spec[agent.Config] {
	return daemon.Spec[agent.Config]{
		Name:  "writ-agent",
		Short: "Writ's node agent: attests the node and its workloads, serves the SPIFFE Workload API",
		Long: `writ-agent attests the node to an issuer (writd, or a SPIRE server), attests the
workloads of the node by what the kernel says of them, and serves them X.509 and
JWT SVIDs on a Unix socket: the SPIFFE Workload API. Envoy takes its certificates and
bundles from the same socket (SDS v3).

The first start needs a join token, from the file that join_token_file names,
from standard input, or from ` + jointoken.Env + `. It is never an argument, which
every process on the machine could read. With attestor in the file, a certificate
of the machine or a service account token of Kubernetes takes its place.`,
		Example: example,
		Default: agent.Default,
		Flags:   configFlags,
		Validate: func(c *agent.Config, at daemon.At) error {
			if err := c.Validate(at); err != nil {
				return err
			}
			return errors.Join(checkTrustBundle(c, at), otlp.Check(c.Tracing, os.Getenv, at))
		},
		Run: func(ctx context.Context, cmd *cobra.Command, cfg agent.Config, log *slog.Logger) error {
			return serve(ctx, cfg, tokenSource(cfg.JoinTokenFile, cmd.InOrStdin()), log)
		},
	}
}

// checkTrustBundle reads the file that is to prove the issuer.
func checkTrustBundle(c *agent.Config, at daemon.At) error {
	if c.TrustBundle == "" {
		return nil
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return nil // said already
	}
	bundle, err := x509bundle.Load(td, c.TrustBundle)
	switch {
	case err != nil:
		return at("trust_bundle", "%v: give the issuer's trust bundle (policyctl bundle show), PEM", err)
	case bundle.Empty():
		return at("trust_bundle", "no certificate (PEM) in %s: give the issuer's trust bundle (policyctl bundle show)", c.TrustBundle)
	}
	return nil
}

// configFlags gives each field of the configuration a flag. The name of a flag
// is the key of the file with hyphens.
func configFlags(f *pflag.FlagSet, cfg *agent.Config) {
	f.StringVar(&cfg.TrustDomain, "trust-domain", cfg.TrustDomain, "trust domain to join, as in example.org")
	f.StringVar(&cfg.ServerAddress, "server-address", cfg.ServerAddress, "address of the issuer, host:port")
	f.StringVar(&cfg.TrustBundle, "trust-bundle", cfg.TrustBundle, "file with the trust bundle (PEM) that proves the issuer")
	f.BoolVar(&cfg.InsecureBootstrap, "insecure-bootstrap", cfg.InsecureBootstrap, "trust whatever issuer answers first; for experiments only")
	f.StringVar(&cfg.JoinTokenFile, "join-token-file", cfg.JoinTokenFile, "file with the join token; - is standard input (or environment "+jointoken.Env+")")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory of the agent's own SVID and key")
	f.StringVar(&cfg.Socket, "socket", cfg.Socket, "path of the Workload API socket")
	f.DurationVar(&cfg.SyncInterval, "sync-interval", cfg.SyncInterval, "time between two syncs when no change is pushed")
	f.IntVar(&cfg.MaxConnectionsPerUID, "max-connections-per-uid", cfg.MaxConnectionsPerUID, "open connections that one user may hold")
	f.IntVar(&cfg.MaxStreamsPerUID, "max-streams-per-uid", cfg.MaxStreamsPerUID, "open streams that one user may hold")
	f.DurationVar(&cfg.ReattestInterval, "reattest-interval", cfg.ReattestInterval, "how often workloads with an open stream are attested again; 0s is never")
	f.StringVar(&cfg.SDS.DefaultSVIDName, "sds-default-svid-name", cfg.SDS.DefaultSVIDName, "what Envoy calls its default X509-SVID")
	f.StringVar(&cfg.SDS.DefaultBundleName, "sds-default-bundle-name", cfg.SDS.DefaultBundleName, "what Envoy calls the bundle of the own trust domain")
	f.StringVar(&cfg.SDS.DefaultAllBundlesName, "sds-default-all-bundles-name", cfg.SDS.DefaultAllBundlesName, "what Envoy calls all bundles")
	f.BoolVar(&cfg.SDS.DisableSPIFFECertValidation, "sds-disable-spiffe-cert-validation", cfg.SDS.DisableSPIFFECertValidation, "give Envoy plain CA certificates, without its SPIFFE validator")
	f.StringVar(&cfg.Admin, "admin", cfg.Admin, "loopback address of metrics and health; empty is off")
}

// tokenSource reads the join token when it is needed. A file is read each time,
// for it may hold another token by then; standard input once.
func tokenSource(file string, stdin io.Reader) func() (string, error) {
	read := func() (string, error) { return jointoken.Read(file, stdin, os.Getenv(jointoken.Env)) }
	if file == "-" {
		return sync.OnceValues(read)
	}
	return read
}

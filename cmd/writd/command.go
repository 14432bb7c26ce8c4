package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/writdconf"
)

func spec() daemon.Spec[writdconf.Config] {
	level := new(slog.LevelVar)
	return daemon.Spec[writdconf.Config]{
		Name:  "writd",
		Short: "Writ's control plane: issuer, decision service and audit collector",
		Example: `  # everything on one machine, state in /var/lib/writ
  writd --trust-domain example.org --data-dir /var/lib/writ

  # from a file
  writd --config /etc/writ/writd.yaml

  # check a file and stop
  writd --config /etc/writ/writd.yaml --check`,
		Default:  writdconf.Default,
		Flags:    flags,
		Words:    map[string][]string{"roles": {"issuer", "decision", "audit"}},
		Validate: validate,
		LogLevel: level,
		Run: func(ctx context.Context, _ *cobra.Command, cfg writdconf.Config, log *slog.Logger) error {
			return serve(ctx, cfg, log, level)
		},
	}
}

func flags(f *pflag.FlagSet, cfg *writdconf.Config) {
	f.StringVar(&cfg.TrustDomain, "trust-domain", cfg.TrustDomain, "trust domain to name, as in example.org")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory of database, keys and ledger")
	f.StringSliceVar(&cfg.Roles, "roles", cfg.Roles, "roles to run: issuer, decision, audit (default all)")
	f.StringVar(&cfg.IssuerListen, "issuer-listen", cfg.IssuerListen, "address of the issuer listener")
	f.StringVar(&cfg.ControlListen, "control-listen", cfg.ControlListen, "address of the control listener")
	f.StringVar(&cfg.AdminSocket, "admin-socket", cfg.AdminSocket, "path of the admin socket (default <data-dir>/run/admin.sock)")
	f.StringVar(&cfg.AdminListen, "admin-listen", cfg.AdminListen, "address of the admin listener, for administration over the network; empty is off")
	f.StringVar(&cfg.AdminPolicy, "admin-policy", cfg.AdminPolicy, "directory of the Rego policy that says who may administer over the network")
	f.StringVar(&cfg.Admin, "admin", cfg.Admin, "loopback address of metrics and health; empty is off")
	f.StringVar(&cfg.WorkloadAPI, "workload-api", cfg.WorkloadAPI, "Workload API socket for the own SVID, without the issuer role")
	f.DurationVar(&cfg.CATTL, "ca-ttl", cfg.CATTL, "life of a signing authority")
	f.DurationVar(&cfg.SVIDTTL, "svid-ttl", cfg.SVIDTTL, "life of an X509-SVID whose entry sets none")
	f.DurationVar(&cfg.JWTTTL, "jwt-ttl", cfg.JWTTTL, "life of a JWT-SVID whose entry sets none")
	f.IntVar(&cfg.AttestRate, "attest-rate", cfg.AttestRate, "attestation attempts per second and address")
	f.IntVar(&cfg.SignRate, "sign-rate", cfg.SignRate, "SVIDs per second that one agent may have signed; 0 is no limit")
	f.StringSliceVar(&cfg.PublisherKeys, "publisher-keys", cfg.PublisherKeys, "public key files (PEM) of publishers that may push policy")
	f.IntVar(&cfg.Approvals, "approvals", cfg.Approvals, "approvals that each activation of policy takes: 0, 1 or 2")
	f.BoolVar(&cfg.AllowUnsignedPolicy, "allow-unsigned-policy", cfg.AllowUnsignedPolicy, "take policy that no publisher signed; for experiments only")
	f.Int64Var(&cfg.AuditMaxBytes, "audit-max-bytes", cfg.AuditMaxBytes, "bytes that the audit ledger may take")
	f.IntVar(&cfg.RecheckSample, "recheck-sample", cfg.RecheckSample, "one in this many recorded decisions is decided again and compared; 0 is none")
	f.StringVar(&cfg.Collector, "collector", cfg.Collector, "control listener of the writd that keeps the record, without the audit role")
	f.StringVar(&cfg.AdoptEntries, "adopt-entries", cfg.AdoptEntries, "digest of the entries of a database that was refused, to take them as they are, once")
	f.DurationVar(&cfg.Drain, "drain", cfg.Drain, "time that open calls get at shutdown")
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/internal/version"
	"github.com/writ-dev/writ/internal/writdconf"
)

const example = `  # everything on one machine, state in /var/lib/writ
  writd --trust-domain example.org --data-dir /var/lib/writ

  # from a file
  writd --config /etc/writ/writd.yaml

  # check a file and stop
  writd --config /etc/writ/writd.yaml --check`

func newCmd(stderr io.Writer) *cobra.Command {
	cfg := writdconf.Default()
	var file, logFormat, logLevel string
	var check bool
	cmd := &cobra.Command{
		Use:           "writd",
		Short:         "Writ's control plane: issuer, decision service and audit collector",
		Example:       example,
		Version:       version.String(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(stderr, logFormat, logLevel)
			if err != nil {
				return err
			}
			if err := load(&cfg, file, cmd.Flags()); err != nil {
				return err
			}
			if check {
				fmt.Fprintln(cmd.OutOrStdout(), "configuration ok")
				return nil
			}
			return serve(cmd.Context(), cfg, log)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&file, "config", "", "configuration file (YAML); flags override it")
	f.BoolVar(&check, "check", false, "check the configuration and stop")
	f.StringVar(&cfg.TrustDomain, "trust-domain", cfg.TrustDomain, "trust domain to name, as in example.org")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory of database, keys and ledger")
	f.StringSliceVar(&cfg.Roles, "roles", cfg.Roles, "roles to run: issuer, decision, audit (default all)")
	f.StringVar(&cfg.IssuerListen, "issuer-listen", cfg.IssuerListen, "address of the issuer listener")
	f.StringVar(&cfg.ControlListen, "control-listen", cfg.ControlListen, "address of the control listener")
	f.StringVar(&cfg.AdminSocket, "admin-socket", cfg.AdminSocket, "path of the admin socket (default <data-dir>/run/admin.sock)")
	f.StringVar(&cfg.Admin, "admin", cfg.Admin, "loopback address of metrics and health; empty is off")
	f.StringVar(&cfg.WorkloadAPI, "workload-api", cfg.WorkloadAPI, "Workload API socket for the own SVID, without the issuer role")
	f.DurationVar(&cfg.CATTL, "ca-ttl", cfg.CATTL, "life of a signing authority")
	f.DurationVar(&cfg.SVIDTTL, "svid-ttl", cfg.SVIDTTL, "life of an X509-SVID whose entry sets none")
	f.DurationVar(&cfg.JWTTTL, "jwt-ttl", cfg.JWTTTL, "life of a JWT-SVID whose entry sets none")
	f.IntVar(&cfg.AttestRate, "attest-rate", cfg.AttestRate, "attestation attempts per second and address")
	f.StringSliceVar(&cfg.PublisherKeys, "publisher-key", cfg.PublisherKeys, "public key file (PEM) of a publisher that may push policy")
	f.BoolVar(&cfg.AllowUnsignedPolicy, "allow-unsigned-policy", cfg.AllowUnsignedPolicy, "take policy that no publisher signed; for experiments only")
	f.Int64Var(&cfg.AuditMaxBytes, "audit-max-bytes", cfg.AuditMaxBytes, "bytes that the audit ledger may take")
	f.StringVar(&cfg.Collector, "collector", cfg.Collector, "control listener of the writd that keeps the record, without the audit role")
	f.DurationVar(&cfg.Drain, "drain", cfg.Drain, "time that open calls get at shutdown")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	for flag, words := range map[string][]string{"roles": {"issuer", "decision", "audit"}, "log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// load reads file over the defaults and lays the flags that were given over
// it. The flags are bound to cfg, so they are set again after the file.
func load(cfg *writdconf.Config, file string, flags *pflag.FlagSet) error {
	at := writdconf.AtFlag
	if file != "" {
		given := map[string]string{}
		flags.Visit(func(f *pflag.Flag) {
			given[f.Name] = f.Value.String()
		})
		*cfg = writdconf.Default()
		pos, err := strictyaml.Load(file, cfg)
		if err != nil {
			return err
		}
		for name, value := range given {
			if list, ok := flags.Lookup(name).Value.(pflag.SliceValue); ok {
				value := strings.Trim(value, "[]")
				if err := list.Replace(strings.Split(value, ",")); err != nil {
					return err
				}
				continue
			}
			if err := flags.Set(name, value); err != nil {
				return err
			}
		}
		at = pos.Errorf
	}
	return cfg.Validate(at)
}

func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}

func execute(ctx context.Context, cmd *cobra.Command, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "writd:", err)
		return 1
	}
	return 0
}

package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/attest/jointoken"
	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/internal/version"
)

const example = `  # first start of a node: the token from a file, the issuer proven by its bundle
  writ-agent --config /etc/writ/agent.yaml --join-token-file /run/writ-token

  # without a file, the token from standard input
  policyctl token create --node n1 | writ-agent --trust-domain example.org \
      --server-address writ.example.org:8081 --trust-bundle bundle.pem \
      --data-dir /var/lib/writ-agent --socket /run/writ-agent/agent.sock --join-token-file -

  # every later start: the SVID kept in the data directory is enough
  writ-agent --config /etc/writ/agent.yaml

  # check a file and stop
  writ-agent --config /etc/writ/agent.yaml --check`

func newCmd() *cobra.Command {
	cfg := agent.Default()
	var file, logFormat, logLevel string
	var check bool
	cmd := &cobra.Command{
		Use:   "writ-agent",
		Short: "Writ's node agent: attests the node and its workloads, serves the SPIFFE Workload API",
		Long: `writ-agent attests the node to an issuer (writd, or a SPIRE server), attests the
workloads of the node by what the kernel says of them, and serves them X.509 and
JWT SVIDs on a Unix socket: the SPIFFE Workload API.

The first start needs a join token, from the file that join_token_file names,
from standard input, or from ` + jointoken.Env + `. It is never an argument, which
every process on the machine could read.`,
		Example:       example,
		Version:       version.String(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logFormat, logLevel)
			if err != nil {
				return err
			}
			if err := load(&cfg, file, cmd.Flags()); err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "configuration ok")
				return err
			}
			return serve(cmd.Context(), cfg, tokenSource(cfg.JoinTokenFile, cmd.InOrStdin()), log)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&file, "config", "", "configuration file (YAML); flags override it")
	f.BoolVar(&check, "check", false, "check the configuration and stop")
	configFlags(f, &cfg)
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	for flag, words := range map[string][]string{"log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	cmd.AddCommand(completionCmd(cmd))
	return cmd
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
	f.StringVar(&cfg.Admin, "admin", cfg.Admin, "loopback address of metrics and health; empty is off")
}

// load reads file over the defaults and lays the flags that were given over it.
func load(cfg *agent.Config, file string, flags *pflag.FlagSet) error {
	at := func(key, format string, args ...any) error {
		return fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
	}
	if file == "" {
		return cfg.Validate(at)
	}
	// Reading the file overwrites what the flags are bound to.
	given := map[string]string{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = f.Value.String() })
	*cfg = agent.Default()
	pos, err := strictyaml.Load(file, cfg)
	if err != nil {
		return err
	}
	for name, value := range given {
		if err := flags.Set(name, value); err != nil {
			return err
		}
	}
	return cfg.Validate(pos.Errorf)
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

// completionCmd stands for cobra's own, which a program without further
// subcommands does not get.
func completionCmd(root *cobra.Command) *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print a completion script for bash, zsh, fish or powershell",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return root.GenPowerShellCompletionWithDesc(out)
		},
	}
}

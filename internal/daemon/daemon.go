// Package daemon is the command line that writd, writ-agent and writ-sidecar
// share: a configuration file in strict YAML, flags that override it, --check,
// logging, completion, and what a service manager is told.
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/internal/version"
)

// At makes an error at a key of the configuration: with file, line and column
// where it was read from a file.
type At func(key, format string, args ...any) error

// Spec describes a daemon whose configuration file decodes into C.
type Spec[C any] struct {
	Name, Short, Long, Example string
	// Default is the configuration before file and flags.
	Default func() C
	// Flags binds flags to fields. Their names are the keys with hyphens.
	Flags func(*pflag.FlagSet, *C)
	// Words completes and documents flags that take one of a few words.
	Words map[string][]string
	// LogLevel becomes the level of the log, for a daemon that changes it while
	// it runs. Optional.
	LogLevel *slog.LevelVar
	// Validate finds what cannot work.
	Validate func(*C, At) error
	// Run serves until ctx ends.
	Run func(ctx context.Context, cmd *cobra.Command, cfg C, log *slog.Logger) error
}

// Main runs the daemon with the arguments and streams of the process, until it
// ends or is interrupted or terminated, and returns the exit code.
func Main[C any](s Spec[C]) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return s.Execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// Execute runs the daemon with args and returns the exit code.
func (s Spec[C]) Execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := s.command()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
		return 1
	}
	return 0
}

func (s Spec[C]) command() *cobra.Command {
	cfg := s.Default()
	var file, logFormat, logLevel string
	var check bool
	cmd := &cobra.Command{
		Use: s.Name, Short: s.Short, Long: s.Long, Example: s.Example,
		Version: version.String(), Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logFormat, logLevel, s.LogLevel)
			if err != nil {
				return err
			}
			if err := s.load(&cfg, file, cmd.Flags()); err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "configuration ok")
				return err
			}
			return s.Run(cmd.Context(), cmd, cfg, log)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&file, "config", "", "configuration file (YAML); flags override it")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	f.BoolVar(&check, "check", false, "check the configuration and stop")
	s.Flags(f, &cfg)
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	words := map[string][]string{"log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"}}
	for _, list := range []map[string][]string{words, s.Words} {
		for flag, words := range list {
			_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	cmd.AddCommand(completionCmd(cmd))
	return cmd
}

// load reads file over the defaults and lays the flags that were given over
// it.
func (s Spec[C]) load(cfg *C, file string, flags *pflag.FlagSet) error {
	if file == "" {
		return s.Validate(cfg, func(key, format string, args ...any) error {
			return fmt.Errorf("--%s: %s", strings.ReplaceAll(key, "_", "-"), fmt.Sprintf(format, args...))
		})
	}
	// The flags are bound to cfg, which reading the file overwrites.
	var again []func() error
	flags.Visit(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); ok {
			given := slices.Clone(list.GetSlice())
			again = append(again, func() error { return list.Replace(given) })
			return
		}
		given := f.Value.String()
		again = append(again, func() error { return f.Value.Set(given) })
	})
	*cfg = s.Default()
	pos, err := strictyaml.Load(file, cfg)
	if err != nil {
		return err
	}
	for _, set := range again {
		if err := set(); err != nil {
			return err
		}
	}
	return s.Validate(cfg, pos.Errorf)
}

func newLogger(w io.Writer, format, level string, l *slog.LevelVar) (*slog.Logger, error) {
	if l == nil {
		l = new(slog.LevelVar)
	}
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
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print a completion script for bash, zsh, fish or powershell",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
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

// Notify tells the service manager, if there is one (sd_notify(3)).
func Notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager was not told", "state", state, "error", err)
	}
}

// States that Notify tells.
const (
	Ready    = daemon.SdNotifyReady
	Stopping = daemon.SdNotifyStopping
)

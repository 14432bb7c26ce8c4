package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/internal/version"
)

// app is what every subcommand shares. Results go to stdout, in the form that
// --output asks for; everything said on the way goes to stderr.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	server         string
	svidDir        string
	serverOwner    string
	dataDir        string
	patience       time.Duration // with the Workload API, for the own SVID; zero is workloadAPITimeout
	output         string
}

// exitError ends the program with a code other than 1, and says nothing when
// err is nil because the result already told.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func newRootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "policyctl",
		Short:         "Names, policy and evidence for workloads",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return fmt.Errorf("--output %q: want text or json", a.output)
			}
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", os.Getenv("WRIT_SERVER"), "admin socket of writd, or tcp://host:port of its admin listener (WRIT_SERVER; default <data-dir>/run/admin.sock)")
	f.StringVar(&a.svidDir, "svid-dir", os.Getenv("WRIT_SVID_DIR"), "directory with svid.pem, key.pem and bundle.pem to prove to an admin listener who you are (WRIT_SVID_DIR; default: ask the Workload API)")
	_ = root.MarkPersistentFlagDirname("svid-dir")
	f.StringVar(&a.serverOwner, "server-owner", os.Getenv("WRIT_SERVER_OWNER"), "user, beside root and yourself, whose admin socket is trusted (WRIT_SERVER_OWNER)")
	f.StringVar(&a.dataDir, "data-dir", defaultDataDir(), "directory of the local mesh (WRIT_DATA_DIR)")
	f.StringVarP(&a.output, "output", "o", "text", "form of the result: text or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddCommand(
		newUpCmd(a),
		newStatusCmd(a),
		newHealthcheckCmd(a),
		newEntryCmd(a),
		newTokenCmd(a),
		newAgentCmd(a),
		newBundleCmd(a),
		newFederationCmd(a),
		newAdminPolicyCmd(a),
		newAuthorityCmd(a),
		newReplicaCmd(a),
		newPolicyCmd(a),
		newDecideCmd(a),
		newSimulateCmd(a),
		newAuditCmd(a),
		newSVIDCmd(a),
		newBackupCmd(a),
		newRestoreCmd(a),
		newSPIRECmd(a),
		newShopServiceCmd(a),
	)
	for _, c := range root.Commands() {
		demandSubcommand(c)
	}
	return root
}

// demandSubcommand has a command that only has others below it refuse a word
// that is none of them, for which cobra shows the help and exit code 0.
func demandSubcommand(c *cobra.Command) {
	if c.Runnable() || !c.HasSubCommands() {
		return
	}
	c.DisableFlagsInUseLine = true
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf(": did you mean %q?", near[0])
		}
		return errors.New(text)
	}
}

func execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		if exit.err == nil {
			return code
		}
	}
	fmt.Fprintf(root.ErrOrStderr(), "policyctl: %v\n", err)
	return code
}

func defaultDataDir() string {
	if dir := os.Getenv("WRIT_DATA_DIR"); dir != "" {
		return dir
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "writ")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".writ"
	}
	return filepath.Join(home, ".local", "state", "writ")
}

// dial connects to writd's admin socket. The socket must belong to this user,
// to root, or to the user that --server-owner names: whoever owns it is
// believed.
func (a *app) dial() (*grpc.ClientConn, error) {
	if strings.HasPrefix(a.server, remoteScheme) {
		return a.dialRemote()
	}
	path := a.server
	if path == "" {
		path = filepath.Join(a.dataDir, "run", "admin.sock")
	}
	path = unixsock.Path(path)
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("the control plane's socket is not for this user: only root and the user that writd runs as may use it: %w", err)
		}
		return nil, fmt.Errorf("no control plane at %s: start one (policyctl up, or writd), or name its socket with --server: %w", path, err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s is not a socket", path)
	}
	if err := a.checkOwner(path, info); err != nil {
		return nil, err
	}
	// Dialled by hand: in a target, gRPC would take # ? and % in a path for
	// parts of a URL.
	return grpc.NewClient("passthrough:///admin", append(noteAnswered(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
		// A server on this machine is back as soon as it can be, and may be busy.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 10 * time.Second, Backoff: backoff.Config{
			BaseDelay: 50 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: time.Second,
		}}))...)
}

func (a *app) checkOwner(path string, info os.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 || int(st.Uid) == os.Getuid() {
		return nil
	}
	owner := strconv.FormatUint(uint64(st.Uid), 10)
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if a.serverOwner == owner {
		return nil
	}
	return fmt.Errorf("socket %s belongs to %s, neither root nor you: not trusting it; if that is the user of writd, say --server-owner %s", path, owner, owner)
}

// withClient runs call with a client of the control plane.
func withClient[C any](a *app, newClient func(grpc.ClientConnInterface) C, call func(C) error) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	return call(newClient(conn))
}

// pages calls next with the token that it gave last, until it gives none.
func pages(next func(token string) (string, error)) error {
	for token := ""; ; {
		var err error
		if token, err = next(token); err != nil {
			return rpcError(err)
		}
		if token == "" {
			return nil
		}
	}
}

// rpcError is what the server said, without gRPC's wrapping; nil of nil.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	switch {
	case !ok:
		return err
	case s.Code() == codes.Unimplemented:
		return fmt.Errorf("this server does not serve that: of writd its roles decide (--roles), and spire-server has no such call: %s", s.Message())
	case errors.As(err, new(answered)):
		return fmt.Errorf("the control plane answers and refuses: %s", s.Message())
	case s.Code() == codes.Unavailable:
		return fmt.Errorf("the control plane does not answer: %s", s.Message())
	}
	return errors.New(s.Message())
}

// emitDeleted writes the IDs of what was deleted.
func (a *app) emitDeleted(ids []string) error {
	result := struct {
		Deleted []string `json:"deleted"`
	}{ids}
	return a.emit(result, func(w io.Writer) error {
		for _, id := range ids {
			if _, err := fmt.Fprintf(w, "deleted %s\n", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// emit writes a result: v as one JSON document, or what text writes.
func (a *app) emit(v any, text func(w io.Writer) error) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return text(a.stdout)
}

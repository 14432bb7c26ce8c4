package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/unixsock"
)

func newSVIDCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "svid",
		Short: "Fetch the identity of this process; revoke SVIDs",
	}
	cmd.AddCommand(newSVIDFetchCmd(a), newSVIDWriteCmd(a), newSVIDRevokeCmd(a), newSVIDRevocationsCmd(a))
	return cmd
}

type svidFetch struct {
	socket    string
	spiffeID  string
	audiences []string
	timeout   time.Duration
}

func newSVIDFetchCmd(a *app) *cobra.Command {
	var f svidFetch
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Fetch SVIDs from a SPIFFE Workload API",
		Long: `Fetch the SVIDs that a SPIFFE Workload API gives to policyctl: that of writ-agent,
or of any other agent. What it gives depends on who asks, so the result is that
of policyctl itself: its user, its groups, its program.

Without --audience the SVIDs are X.509, and private keys are never printed: svid
write puts them into files. With --audience they are JWTs, which as text are
printed bare, one a line.`,
		Example: `  policyctl svid fetch
  policyctl svid fetch --socket /run/writ-agent/agent.sock
  curl -H "Authorization: Bearer $(policyctl svid fetch --audience api)" https://api.example.org/`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.checkAudiences(cmd, "audience"); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			return f.run(ctx, a)
		},
	}
	flags := cmd.Flags()
	f.register(cmd)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if unknown := (*pflag.NotExistError)(nil); errors.As(err, &unknown) && unknown.GetSpecifiedName() == "write" {
			return fmt.Errorf("%w: policyctl svid write DIR puts SVIDs into files", err)
		}
		return err
	})
	flags.StringSliceVar(&f.audiences, "audience", nil, "fetch JWT-SVIDs for this audience (repeatable)")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long to wait for the agent")
	return cmd
}

// checkAudiences refuses a flag that was given and names no audience.
func (f *svidFetch) checkAudiences(cmd *cobra.Command, flag string) error {
	if cmd.Flags().Changed(flag) && (len(f.audiences) == 0 || slices.Contains(f.audiences, "")) {
		return fmt.Errorf("--%s: names no audience: say who is to take the JWT-SVID", flag)
	}
	return nil
}

// register adds the flags that say whom to ask for what.
func (f *svidFetch) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.socket, "socket", "", "Workload API: a path, unix:///path or tcp://IP:port (default "+workloadapi.SocketEnv+", then the agent's of the local mesh)")
	flags.StringVar(&f.spiffeID, "spiffe-id", "", "of several identities take this one")
	_ = cmd.MarkFlagFilename("socket")
}

func (f *svidFetch) run(ctx context.Context, a *app) error {
	client, want, err := f.open(ctx, a)
	if err != nil {
		return err
	}
	defer client.Close()
	if len(f.audiences) > 0 {
		err = f.fetchJWT(ctx, a, client, want)
	} else {
		err = f.fetchX509(ctx, a, client, want)
	}
	return explainWorkloadAPI(err, f.address(a))
}

// open gives a client of the Workload API and the identity that is wanted, if one is.
func (f *svidFetch) open(ctx context.Context, a *app) (client *workloadapi.Client, want spiffeid.ID, err error) {
	if f.spiffeID != "" {
		if want, err = spiffeid.FromString(f.spiffeID); err != nil {
			return nil, want, fmt.Errorf("--spiffe-id: %w", err)
		}
	}
	address := f.address(a)
	if client, err = workloadapi.New(ctx, workloadapi.WithAddr(address)); err != nil {
		return nil, want, fmt.Errorf("workload API %s: %w", address, err)
	}
	return client, want, nil
}

// address is the Workload API as a URI.
func (f *svidFetch) address(a *app) string {
	switch env, ok := workloadapi.GetDefaultAddress(); {
	case strings.HasPrefix(f.socket, "unix:"), strings.HasPrefix(f.socket, "tcp:"):
		return f.socket
	case f.socket != "":
		return "unix://" + unixsock.Path(f.socket)
	case ok:
		return env
	}
	return "unix://" + unixsock.Path(filepath.Join(a.dataDir, "run", "agent", "agent.sock"))
}

// explainWorkloadAPI says what the answers of a Workload API mean for a person.
func explainWorkloadAPI(err error, address string) error {
	switch status.Code(err) {
	case codes.PermissionDenied:
		exe, _ := os.Executable()
		return fmt.Errorf("the agent at %s has no identity for this process (uid %d, gid %d, program %s): %s",
			address, os.Getuid(), os.Getgid(), exe, status.Convert(err).Message())
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("no answer from an agent at %s: %s", address, status.Convert(err).Message())
	}
	return err
}

// x509Result is the form of --output json.
type x509Result struct {
	SVIDs []x509Entry `json:"svids"`
	// Bundles are the trust bundles, PEM, by trust domain.
	Bundles map[string]string `json:"bundles"`
	Written []string          `json:"written,omitempty"`
}

type x509Entry struct {
	SPIFFEID  string    `json:"spiffe_id"`
	Hint      string    `json:"hint,omitempty"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Chain     string    `json:"chain"` // PEM
}

func (f *svidFetch) fetchX509(ctx context.Context, a *app, client *workloadapi.Client, want spiffeid.ID) error {
	got, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	svids, err := chosen(got, want)
	if err != nil {
		return err
	}
	result := x509Result{Bundles: map[string]string{}}
	for _, b := range got.Bundles.Bundles() {
		pem, err := b.Marshal()
		if err != nil {
			return err
		}
		result.Bundles[b.TrustDomain().Name()] = string(pem)
	}
	for _, s := range svids {
		entry, err := describeSVID(s)
		if err != nil {
			return err
		}
		result.SVIDs = append(result.SVIDs, entry)
	}
	return a.emit(result, result.text)
}

// chosen are the SVIDs that are wanted, the default one first: all of them, or those of
// one name.
func chosen(got *workloadapi.X509Context, want spiffeid.ID) ([]*x509svid.SVID, error) {
	svids := slices.DeleteFunc(slices.Clone(got.SVIDs), func(s *x509svid.SVID) bool { return !want.IsZero() && s.ID != want })
	if len(svids) == 0 {
		return nil, fmt.Errorf("the agent gives this process %s, not %s", got.DefaultSVID().ID, want)
	}
	return svids, nil
}

func describeSVID(s *x509svid.SVID) (x509Entry, error) {
	chain, _, err := s.Marshal()
	leaf := s.Certificates[0]
	return x509Entry{
		SPIFFEID: s.ID.String(), Hint: s.Hint, Serial: serialOf(leaf),
		NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(), Chain: string(chain),
	}, err
}

func serialOf(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

func (r x509Result) text(w io.Writer) error {
	for _, s := range r.SVIDs {
		hint := ""
		if s.Hint != "" {
			hint = " (" + s.Hint + ")"
		}
		if _, err := fmt.Fprintf(w, "%s%s\n  serial   %s\n  expires  %s\n", s.SPIFFEID, hint, s.Serial, s.NotAfter.Local().Format(time.RFC3339)); err != nil {
			return err
		}
	}
	for _, path := range r.Written {
		if _, err := fmt.Fprintln(w, "wrote", path); err != nil {
			return err
		}
	}
	return nil
}

// jwtResult is the form of --output json.
type jwtResult struct {
	SVIDs []jwtEntry `json:"svids"`
}

type jwtEntry struct {
	SPIFFEID string    `json:"spiffe_id"`
	Hint     string    `json:"hint,omitempty"`
	Audience []string  `json:"audience"`
	Expires  time.Time `json:"expires"`
	Token    string    `json:"token"`
}

func (f *svidFetch) fetchJWT(ctx context.Context, a *app, client *workloadapi.Client, want spiffeid.ID) error {
	svids, err := client.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: f.audiences[0], ExtraAudiences: f.audiences[1:], Subject: want})
	if err != nil {
		return err
	}
	var result jwtResult
	for _, s := range svids {
		result.SVIDs = append(result.SVIDs, jwtEntry{SPIFFEID: s.ID.String(), Hint: s.Hint, Audience: s.Audience, Expires: s.Expiry, Token: s.Marshal()})
	}
	return a.emit(result, func(w io.Writer) error {
		for _, s := range result.SVIDs {
			if _, err := fmt.Fprintln(w, s.Token); err != nil {
				return err
			}
		}
		return nil
	})
}

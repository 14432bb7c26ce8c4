package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/fileset"
)

// reloadTime bounds the reload command; retryTime is between two tries of it.
const (
	reloadTime = 30 * time.Second
	retryTime  = 10 * time.Second
)

type svidWrite struct {
	svidFetch
	dir       string
	watch     bool
	federated bool
	command   string
	pidFile   string
	token     tokenFile
	// pause is before what failed is tried again; retryTime but in tests.
	pause time.Duration
	log   *slog.Logger
}

// tokenFile is the JWT-SVID that was got last, and the bundle to validate others by.
type tokenFile struct {
	id      spiffeid.ID
	text    string
	bundle  []byte
	renewal time.Time
}

func newSVIDWriteCmd(a *app) *cobra.Command {
	w := svidWrite{pause: retryTime}
	cmd := &cobra.Command{
		Use:   "write DIR",
		Short: "Keep the SVID of this process in files, for programs that want files",
		Long: `Write the X.509-SVID that a Workload API gives to policyctl into DIR:

  svid.pem     the certificate and its intermediates
  key.pem      its private key, mode 0600
  pair.pem     both in one file, mode 0600
  bundle.pem   the trust bundle of its trust domain
  jwt.token    with --jwt-audience: a JWT-SVID, mode 0600
  jwks.json    with --jwt-audience: the keys that JWT-SVIDs are validated by

A file of one of these names that svid write did not make is not replaced, unless
svid.pem holds an SVID: of another program that writes them, whose place this takes.

They are replaced as a set: DIR/current is a link to the newest, the names in DIR
lead through it. With --watch this goes on at each rotation, until it is told to
stop. When the agent is away the files stay as they are, and the log says so.`,
		Example: `  policyctl svid write /run/nginx-svid --watch --reload-signal /run/nginx.pid
  policyctl svid write /run/my-app --watch --reload-command 'systemctl reload my-app'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.checkAudiences(cmd, "jwt-audience"); err != nil {
				return err
			}
			w.dir = args[0]
			w.log = slog.New(slog.NewTextHandler(a.stderr, nil))
			return w.run(cmd.Context(), a)
		},
	}
	flags := cmd.Flags()
	w.register(cmd)
	flags.DurationVar(&w.timeout, "timeout", 10*time.Second, "how long to wait for the agent, without --watch")
	flags.BoolVar(&w.watch, "watch", false, "go on, and write again at each change")
	flags.BoolVar(&w.federated, "federated", false, "also write the federated bundles, as bundle.TRUST-DOMAIN.pem")
	flags.StringSliceVar(&w.audiences, "jwt-audience", nil, "also write a JWT-SVID for this audience (repeatable, all in one token), renewed at half of its life")
	flags.StringVar(&w.command, "reload-command", "", "run this by sh -c after each write")
	flags.StringVar(&w.pidFile, "reload-signal", "", "send SIGHUP to the process that this file names after each write")
	cmd.MarkFlagsMutuallyExclusive("reload-command", "reload-signal")
	_ = cmd.MarkFlagFilename("reload-signal")
	return cmd
}

func (w *svidWrite) run(ctx context.Context, a *app) error {
	client, want, err := w.open(ctx, a)
	if err != nil {
		return err
	}
	defer client.Close()
	if w.watch {
		return explainWorkloadAPI(w.follow(ctx, client, want), w.address(a))
	}
	once, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	got, err := client.FetchX509Context(once)
	if err != nil {
		return explainWorkloadAPI(err, w.address(a))
	}
	if err := w.newToken(once, client, got, want); err != nil {
		return err
	}
	svid, files, err := w.render(got, want)
	if err != nil {
		return err
	}
	paths, err := w.store(files)
	if err != nil {
		return err
	}
	if err := w.reload(ctx); err != nil {
		return err
	}
	entry, err := describeSVID(svid)
	if err != nil {
		return err
	}
	result := x509Result{SVIDs: []x509Entry{entry}, Written: paths}
	return a.emit(result, func(out io.Writer) error { return result.text(out) })
}

// updates brings what the Workload API says to the one goroutine that writes.
type updates struct {
	ctx  context.Context
	got  chan *workloadapi.X509Context
	errs chan error
}

func (u updates) OnX509ContextUpdate(c *workloadapi.X509Context) {
	select {
	case u.got <- c:
	case <-u.ctx.Done():
	}
}

func (u updates) OnX509ContextWatchError(err error) {
	select {
	case u.errs <- err:
	case <-u.ctx.Done():
	}
}

// follow writes each state that differs until ctx is done, which is no error. The
// Workload API sends everything again when any SVID of this process changes. A write
// or a reload that fails is tried again when that is due, and not at what changes
// nothing; until then the last good files stay.
func (w *svidWrite) follow(ctx context.Context, client *workloadapi.Client, want spiffeid.ID) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	u := updates{watching, make(chan *workloadapi.X509Context), make(chan error)}
	ended := make(chan error, 1)
	go func() { ended <- client.WatchX509Context(watching, u) }()
	var state *workloadapi.X509Context // what is not yet written and told
	var expires time.Time
	var retry, renewal <-chan time.Time
	// tried is the digest of what was last to be written and told, and written of
	// what is in the files.
	var tried, written [sha256.Size]byte
	ready := false
	for {
		pushed := false
		select {
		case <-ctx.Done():
			daemon.Notify(w.log, daemon.Stopping)
			cancel()
			<-ended
			return nil
		case err := <-ended:
			if ctx.Err() != nil { // told to stop: both are true then
				return nil
			}
			return err
		case err := <-u.errs:
			if expires.IsZero() {
				w.log.Warn("no SVID yet", "error", err)
			} else {
				w.log.Warn("the agent gives nothing: the files stay as they are", "valid_until", expires, "error", err)
			}
			continue
		case state = <-u.got:
			pushed = true
		case <-retry:
		case <-renewal:
			before := w.token.text
			tokenErr := w.newToken(ctx, client, state, want)
			if renewal = w.renewal(tokenErr); w.token.text == before {
				continue
			}
		}
		tokenErr := w.newToken(ctx, client, state, want)
		renewal = w.renewal(tokenErr)
		svid, files, err := w.render(state, want)
		if err == nil && !ready {
			err = tokenErr // only the first set waits for a token
		}
		digest := digestOf(files)
		if err == nil && pushed && digest == tried {
			continue
		}
		retry, tried = nil, digest
		if err == nil && digest != written {
			if _, err = w.store(files); err == nil {
				written, expires = digest, svid.Certificates[0].NotAfter
				w.log.Info("SVID written", "spiffe_id", svid.ID.String(), "serial", serialOf(svid.Certificates[0]), "expires", expires)
			}
		}
		if err == nil {
			err = w.reload(ctx)
		}
		if err != nil {
			w.log.Error("will be tried again", "in", w.pause, "error", err)
			retry = time.After(w.pause)
			continue
		}
		if !ready {
			ready = true
			daemon.Notify(w.log, daemon.Ready)
		}
	}
}

// newToken gets a JWT-SVID of the same identity when there is none yet or half of
// its life is over. After an error the one before stays.
func (w *svidWrite) newToken(ctx context.Context, client *workloadapi.Client, got *workloadapi.X509Context, want spiffeid.ID) error {
	if len(w.audiences) == 0 {
		return nil
	}
	svids, err := chosen(got, want)
	if err != nil {
		return err
	}
	svid := svids[0]
	now := time.Now()
	if w.token.id == svid.ID && now.Before(w.token.renewal) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Subject: svid.ID, Audience: w.audiences[0], ExtraAudiences: w.audiences[1:]})
	if err != nil {
		return fmt.Errorf("JWT-SVID: %w", err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return fmt.Errorf("JWT bundle: %w", err)
	}
	bundle, err := bundles.GetJWTBundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return err
	}
	keys, err := bundle.Marshal()
	if err != nil {
		return err
	}
	w.token = tokenFile{svid.ID, token.Marshal(), keys, now.Add(token.Expiry.Sub(now) / 2)}
	return nil
}

// renewal is when to get the next JWT-SVID, after what newToken returned.
func (w *svidWrite) renewal(err error) <-chan time.Time {
	switch {
	case len(w.audiences) == 0:
		return nil
	case err != nil:
		w.log.Warn("no new JWT-SVID: the one in the files stays", "error", err)
		return time.After(w.pause)
	}
	// The agent may give the same one again until it has renewed it.
	return time.After(max(time.Until(w.token.renewal), time.Second))
}

// render makes the files of one SVID and its bundles.
func (w *svidWrite) render(got *workloadapi.X509Context, want spiffeid.ID) (*x509svid.SVID, []fileset.File, error) {
	svids, err := chosen(got, want)
	if err != nil {
		return nil, nil, err
	}
	svid := svids[0]
	chain, key, err := svid.Marshal()
	if err != nil {
		return nil, nil, err
	}
	files := []fileset.File{
		{Name: "svid.pem", Data: chain, Mode: 0o644},
		{Name: "key.pem", Data: key, Mode: 0o600},
		{Name: "pair.pem", Data: append(append([]byte{}, chain...), key...), Mode: 0o600},
	}
	if w.token.id == svid.ID {
		files = append(files,
			fileset.File{Name: "jwt.token", Data: []byte(w.token.text), Mode: 0o600},
			fileset.File{Name: "jwks.json", Data: w.token.bundle, Mode: 0o644})
	}
	own := false
	for _, b := range got.Bundles.Bundles() {
		pem, err := b.Marshal()
		if err != nil {
			return nil, nil, err
		}
		switch {
		case b.TrustDomain() == svid.ID.TrustDomain():
			own = true
			files = append(files, fileset.File{Name: "bundle.pem", Data: pem, Mode: 0o644})
		case w.federated:
			files = append(files, fileset.File{Name: "bundle." + b.TrustDomain().Name() + ".pem", Data: pem, Mode: 0o644})
		}
	}
	if !own {
		return nil, nil, fmt.Errorf("the agent gives no bundle of %s", svid.ID.TrustDomain())
	}
	slices.SortFunc(files, func(x, y fileset.File) int { return cmp.Compare(x.Name, y.Name) })
	return svid, files, nil
}

// digestOf is of the names and contents of files.
func digestOf(files []fileset.File) [sha256.Size]byte {
	sum := sha256.New()
	for _, f := range files {
		fmt.Fprintf(sum, "%d:%s%d:%s", len(f.Name), f.Name, len(f.Data), f.Data)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// store writes files as a set, and returns their paths.
func (w *svidWrite) store(files []fileset.File) ([]string, error) {
	if err := w.ours(files); err != nil {
		return nil, err
	}
	paths, err := fileset.Write(w.dir, files)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", w.dir, err)
	}
	return paths, nil
}

// ours refuses to replace what svid write did not make, unless the directory holds
// an SVID in a plain svid.pem, which is what other programs of this kind leave.
func (w *svidWrite) ours(files []fileset.File) error {
	takeOver := false
	if data, err := os.ReadFile(filepath.Join(w.dir, "svid.pem")); err == nil {
		block, _ := pem.Decode(data)
		if block != nil && block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err == nil {
				_, err = x509svid.IDFromCert(cert)
			}
			takeOver = err == nil
		}
	}
	for _, f := range append(files, fileset.File{Name: fileset.Current}) {
		path := filepath.Join(w.dir, f.Name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		to, _ := os.Readlink(path)
		switch {
		case f.Name == fileset.Current && fileset.IsVersion(to), f.Name != fileset.Current && to == filepath.Join(fileset.Current, f.Name):
		case f.Name != fileset.Current && info.Mode().IsRegular() && takeOver:
		default:
			return fmt.Errorf("%s is there and not from svid write: name a directory for the SVID alone, or move the file away", path)
		}
	}
	return nil
}

// reload tells the program that uses the files.
func (w *svidWrite) reload(ctx context.Context) error {
	switch {
	case w.command != "":
		ctx, cancel := context.WithTimeout(ctx, reloadTime)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "/bin/sh", "-c", w.command).CombinedOutput(); err != nil {
			return fmt.Errorf("reload command: %w: %s", err, strings.TrimSpace(string(out)))
		}
	case w.pidFile != "":
		data, err := os.ReadFile(w.pidFile)
		if err != nil {
			return fmt.Errorf("reload signal: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || pid <= 1 {
			return errors.New("reload signal: " + w.pidFile + " holds no process id")
		}
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			return fmt.Errorf("reload signal: process %d of %s: %w", pid, w.pidFile, err)
		}
	}
	return nil
}

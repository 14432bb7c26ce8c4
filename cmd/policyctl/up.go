package main

import (
	"context"
	"crypto"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/internal/supervise"
	"github.com/writ-dev/writ/policy/policyv1"
)

func newUpCmd(a *app) *cobra.Command {
	o := upOptions{stdout: a.stdout, stderr: a.stderr}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a mesh on this machine from one file",
		Long: `Run a control plane, an agent, and a sidecar beside each service of a mesh
file, drive the file's requests through them and show each verdict; then stay
until Ctrl-C. Without a file it runs an example shop.

The policy directory is watched: a saved file is checked and in force within a
second, a broken one is refused with file and line while the old stays. State
lives in the data directory, so that the next up goes on where this one ended.`,
		Example: `  policyctl up
  policyctl up -f mesh.yaml
  policyctl up --once -o json | jq .ok`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.dataDir, o.json = a.dataDir, a.output == "json"
			if o.json && !o.once {
				return errors.New("--output json needs --once: there is no result while it runs")
			}
			o.started = processStart()
			result, err := up(cmd.Context(), o)
			if !o.json {
				if err != nil || result == nil {
					return err
				}
				return result.failure()
			}
			result, err = concluded(result, err)
			return errors.Join(err, a.emit(result, nil))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.meshFile, "file", "f", "", "mesh file (default: the example shop)")
	f.BoolVar(&o.once, "once", false, "drive the requests, verify the record, stop; exit 0 if all is as expected")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show the logs of all programs")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
	return cmd
}

// upOptions are the flags of up, and what a test wants to choose.
type upOptions struct {
	// meshFile is empty for the example.
	meshFile, dataDir   string
	once, json, verbose bool
	stdout, stderr      io.Writer
	// self is the path of policyctl, this program where it is empty; the other
	// programs lie beside it.
	self string
	// started is when this process began.
	started time.Time
}

// Times that parts get to stop, together less than five seconds. Sidecars come
// first: they drain and hand their record over.
const (
	sidecarStop = 2500 * time.Millisecond
	appStop     = time.Second
	writdStop   = 1200 * time.Millisecond
)

// readyTimeout bounds the start of everything but the control plane. Programs
// have shorter bounds of their own, each for a start.
const readyTimeout = 2 * time.Minute

// attempts are the starts that a program gets before the mesh is given up.
const attempts = 3

// logLimit is the size of a log file in bytes at which it is moved aside.
const logLimit = 8 << 20

// upRun is one mesh, running.
type upRun struct {
	opts      upOptions
	dir       upDir
	mesh      *mesh.Mesh
	ports     *ports
	programs  programs
	view      *view
	publisher crypto.Signer
	// release gives the data directory back.
	release func()

	group        *supervise.Group
	conn         *grpc.ClientConn
	writd, agent *supervise.Process
	apps         []*supervise.Process
	sidecars     []*supervise.Process

	// revision is the one that the first push put in force.
	revision *policyv1.Revision

	mu   sync.Mutex
	logs map[string]*supervise.Log
	tail *recordTail
}

// up runs a mesh until ctx ends, or with once until its requests are driven.
// When it returns, no process that it started is left. The result is nil when
// ctx or an error ended it before there was one.
func up(ctx context.Context, opts upOptions) (result *upResult, err error) {
	out := opts.stdout
	if opts.json {
		out = opts.stderr
	}
	u := &upRun{opts: opts, view: newView(out), logs: map[string]*supervise.Log{}}
	defer func() {
		if u.release != nil {
			u.release()
		}
	}()
	if err := u.prepare(); err != nil {
		return nil, err
	}
	defer u.close()
	defer u.stop()
	result, err = u.run(ctx)
	if ctx.Err() != nil && !opts.once {
		return nil, nil // asked to stop
	}
	return result, err
}

// prepare does what needs no process: everything that can be wrong with the
// mesh file, the directory or the installation is found here.
func (u *upRun) prepare() (err error) {
	if u.opts.self == "" {
		if u.opts.self, err = os.Executable(); err != nil {
			return err
		}
	}
	if u.programs, err = findPrograms(u.opts.self); err != nil {
		return err
	}
	if u.opts.meshFile != "" {
		// Before the directory is touched.
		if u.mesh, err = loadMesh(u.opts.meshFile); err != nil {
			return err
		}
	}
	if u.dir, u.release, err = openUpDir(u.opts.dataDir); err != nil {
		return err
	}
	if u.mesh == nil {
		file, edited, err := u.dir.unpackShop()
		if err != nil {
			return err
		}
		if edited {
			u.view.warn("using your edited copy of the example; remove %s for the original", display(filepath.Dir(file)))
		}
		if u.mesh, err = loadMesh(file); err != nil {
			return err
		}
	}
	if err := u.dir.sameDomain(u.mesh.TrustDomain); err != nil {
		return err
	}
	if u.ports, err = assignPorts(u.mesh, u.dir.path("ports.json")); err != nil {
		return err
	}
	for _, use := range u.ports.moved {
		u.view.warn("the port kept for %s is taken by another program: it has a new one", use)
	}
	if err := u.publisherKey(); err != nil {
		return err
	}
	if err := u.configs(); err != nil {
		return err
	}
	u.group, err = supervise.NewGroup(u.dir.path("run", "notify"))
	return err
}

// loadMesh reads a mesh file with absolute paths, so that programs find them
// from any directory.
func loadMesh(path string) (*mesh.Mesh, error) {
	m, err := mesh.Load(path)
	if err != nil {
		return nil, err
	}
	if m.Policy, err = filepath.Abs(m.Policy); err != nil {
		return nil, err
	}
	for i := range m.Services {
		if m.Services[i].Dir, err = filepath.Abs(m.Services[i].Dir); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (u *upRun) run(ctx context.Context) (*upResult, error) {
	u.view.begin(u.mesh, string(u.dir))
	if err := u.start(ctx); err != nil {
		return nil, err
	}
	tailCtx, endTail := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer endTail()
	u.tail = newRecordTail(auditv1.NewAdminClient(u.conn), func(err error) {
		u.view.warn("the audit stream broke off (%v): following it again as soon as it is back", rpcError(err))
	}, func() {
		u.view.printf("%s", u.view.style(green, "+ the audit stream is back"))
	})
	subscribed := make(chan struct{})
	following.Go(func() { u.tail.follow(tailCtx, subscribed) })
	if err := u.allReady(ctx, subscribed); err != nil {
		return nil, err
	}
	result := u.drive(ctx)
	if u.opts.once {
		endTail()
		return u.conclude(ctx, result)
	}
	u.tail.goLive(u.view.live)
	u.view.byHand(u.mesh, callable(u.programs.policyctl), string(u.dir))
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	err := u.watchPolicy(ctx)
	u.view.printf("\nstopping")
	return nil, err
}

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/atomicfile"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/health"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/tracing/otlp"
	"github.com/writ-dev/writ/internal/version"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/policy/bundle/fetch"
	"github.com/writ-dev/writ/policy/recheck"
	"github.com/writ-dev/writ/policy/server"
)

// writd is one running control plane. A role that does not run is nil.
type writd struct {
	cfg           writdconf.Config
	td            spiffeid.TrustDomain
	revoked       revocations // what ends peers before their SVID does
	stopFollowing func()
	log           *slog.Logger
	level         *slog.LevelVar
	traces        *otlp.Exporter // nil where nothing is traced
	health        *health.Server
	lock          *os.File
	db            *sql.DB
	held          map[string]*sqldb.Held // what one process may be on a shared database
	member        *sqlstore.Member       // nil where there are no replicas
	keys          *keys.Disk
	alarms        *alarms

	record *record
	// The issuer, with what is below it.
	store       *sqlstore.Store
	registry    *registry.Index
	authorities *ca.CA
	issuer      *issuer.Issuer

	decision *server.Server
	poller   *fetch.Poller
	recheck  *recheck.Sampler
	// adminPolicy is nil where nobody administers over the network.
	adminPolicy *adminPolicy
	source      identity.Source
	upstream    io.Closer
	token       func() error // logs out of the token with the authorities' keys
	started     time.Time
}

// ballastBytes is how much garbage more the collector waits for.
const ballastBytes = 16 << 20

// serve runs a control plane until ctx ends, then drains it.
func serve(ctx context.Context, cfg writdconf.Config, log *slog.Logger, level *slog.LevelVar) (err error) {
	// Reserved and never touched, so that it takes no memory: the collector counts
	// it as alive and waits for as much garbage more. A control plane at rest has
	// little alive and would collect dozens of times a second when it is busy.
	ballast := make([]byte, ballastBytes)
	defer runtime.KeepAlive(ballast)
	w := &writd{cfg: cfg, log: log, level: level, alarms: newAlarms(log), held: map[string]*sqldb.Held{}, started: time.Now()}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.open(ctx); err != nil {
		return w.explain(err)
	}
	return w.run(ctx)
}

// open brings up everything that does not listen, in the order in which the
// parts need each other: the record first, because nothing may happen that is
// not on record.
func (w *writd) open(ctx context.Context) (err error) {
	if w.td, err = spiffeid.TrustDomainFromString(w.cfg.TrustDomain); err != nil {
		return fmt.Errorf("trust domain %q: %w", w.cfg.TrustDomain, err)
	}
	if err := w.openTraces(); err != nil {
		return err
	}
	w.health = health.New()
	if err := w.openDataDir(); err != nil {
		return err
	}
	if w.keys, err = keys.OpenDisk(w.path("keys")); err != nil {
		return err
	}
	if err := w.openDB(ctx); err != nil {
		return err
	}
	if w.record, err = w.openRecord(); err != nil {
		return err
	}
	if w.cfg.AdminPolicy != "" {
		if w.adminPolicy, err = openAdminPolicy(w.cfg.AdminPolicy, w.emit); err != nil {
			return err
		}
	}
	if err := w.openIdentity(ctx); err != nil {
		return err
	}
	w.addConditions()
	if w.cfg.Runs("decision") {
		if err := w.openDecision(ctx); err != nil {
			return err
		}
		if err := w.openRecheck(); err != nil {
			return err
		}
		if err := w.restored(ctx); err != nil {
			return err
		}
		return w.openPolicySource()
	}
	return nil
}

func (w *writd) path(elem ...string) string {
	return filepath.Join(append([]string{w.cfg.DataDir}, elem...)...)
}

// openDataDir makes the directories and takes the lock that keeps a second
// writd out.
func (w *writd) openDataDir() error {
	dir, err := filepath.Abs(w.cfg.DataDir)
	if err != nil {
		return err
	}
	w.cfg.DataDir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if w.lock, err = os.OpenFile(w.path("writd.lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("data directory %s is in use by another writd", dir)
	}
	// Before anything of it is looked at: with another name, whatever is sound in it
	// would look as if somebody had changed it.
	switch name, err := ledger.TrustDomainOf(w.path("audit")); {
	case err != nil:
		return fmt.Errorf("data directory: %w", err)
	case name != "" && name != w.td.Name():
		return fmt.Errorf("data directory %s is of trust domain %s, and trust_domain is %s: set that back, or name a directory of its own (data_dir)", dir, name, w.td.Name())
	}
	w.dropUnfinishedBackups()
	return os.MkdirAll(w.path("public"), 0o755)
}

// openIdentity makes the issuer, or takes this control plane's name from a
// Workload API where the issuer is somebody else.
func (w *writd) openIdentity(ctx context.Context) error {
	if !w.cfg.Runs("issuer") {
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(w.cfg.WorkloadAPI)))
		if err != nil {
			return fmt.Errorf("own SVID from %s: %w", w.cfg.WorkloadAPI, err)
		}
		w.source = source
		return w.followRevocations(ctx)
	}
	var err error
	if w.store, err = w.openStore(ctx); err != nil {
		return err
	}
	if err := w.join(ctx, w.store); err != nil {
		return err
	}
	w.registry = w.store.Index()
	if w.authorities, err = w.openCA(ctx, w.store); err != nil {
		return err
	}
	if err := w.introduce(ctx, w.store, w.authorities); err != nil {
		return err
	}
	attestors, err := w.attestors()
	if err != nil {
		return err
	}
	w.issuer, err = issuer.New(issuer.Config{
		TrustDomain: w.td, Store: w.store, CA: w.authorities, Replica: w.replica(), Emit: w.emit, EmitAll: w.emitAll, Log: w.log, LogLevel: w.level, Health: w.health,
		AdminPolicy:     w.restrictAdmins(),
		AttestPerSecond: float64(w.cfg.AttestRate), AttestBurst: 10 * w.cfg.AttestRate,
		SignPerSecond: signRate(w.cfg.SignRate), Attestors: attestors, FederationRoots: w.federationRoots, Tracer: w.traces.Tracer(),
	})
	if err != nil {
		return err
	}
	if w.adminPolicy != nil {
		w.adminPolicy.targets = w.issuer.Targets
	}
	bundle, _ := w.issuer.Bundle()
	if err := w.publish("bundle.pem", bundle.PEM()); err != nil {
		return err
	}
	source, err := w.issuer.SelfSource(identity.ServerID(w.td))
	if err != nil {
		return err // and no nil pointer in the interface
	}
	w.source = source
	w.revoked = issuedRevocations{w.issuer}
	return nil
}

// restrictAdmins is what is asked about SVIDs that an entry marks admin: the
// admin policy, where there is one.
func (w *writd) restrictAdmins() func(ctx context.Context, id spiffeid.ID, method string, req any) error {
	if w.adminPolicy == nil {
		return nil
	}
	return w.adminPolicy.allow
}

// signRate is the issuer's form of the limit, where 0 is its default and less
// is none.
func signRate(configured int) float64 {
	if configured == 0 {
		return -1
	}
	return float64(configured)
}

// emit puts an act on record, and alarms where a person can see them.
func (w *writd) emit(ctx context.Context, act identity.Act) error {
	if act.Kind == identity.ActAlarm {
		w.alarms.raise(act)
	}
	return w.record.emit(ctx, w.here(act))
}

// emitAll is emit for many acts.
func (w *writd) emitAll(ctx context.Context, acts []identity.Act) error {
	acts = slices.Clone(acts)
	for n, act := range acts {
		if act.Kind == identity.ActAlarm {
			w.alarms.raise(act)
		}
		acts[n] = w.here(act)
	}
	return w.record.emitAll(ctx, acts)
}

// run serves until ctx ends or a part fails, and drains.
func (w *writd) run(ctx context.Context) error {
	servers, err := w.listen()
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, running := errgroup.WithContext(running)
	for _, s := range servers {
		group.Go(func() error { return s.serve() })
	}
	if w.issuer != nil {
		group.Go(func() error { return w.issuer.Run(running) })
		group.Go(func() error { return w.publishBundles(running) })
	}
	group.Go(func() error { w.health.Run(running); return nil })
	group.Go(func() error { return w.record.run(running) })
	group.Go(func() error { return w.keepRoles(running) })
	if w.member != nil {
		group.Go(func() error { return w.member.Run(running) })
	}
	if w.poller != nil {
		group.Go(func() error { return w.poller.Run(running) })
	}
	if w.recheck != nil {
		group.Go(func() error { w.recheck.Run(running); return nil })
	}

	started := w.program().Started(time.Now())
	if _, err := w.record.recorder.Record(&started); err != nil {
		return err
	}
	daemon.Notify(w.log, daemon.Ready)
	w.log.Info("writd is ready", "trust_domain", w.td.Name(), "version", version.String(), "after", time.Since(w.started).Round(time.Millisecond).String())

	select {
	case <-ctx.Done():
	case <-running.Done():
	}
	daemon.Notify(w.log, daemon.Stopping)
	w.log.Info("writd is stopping")
	if w.decision != nil {
		// Its streams never end by themselves.
		w.decision.Close()
	}
	w.record.endIngest()
	w.drain(servers, stop)
	err = group.Wait()
	stopped := w.program().Stopped(time.Now())
	if _, rerr := w.record.recorder.Record(&stopped); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// drain stops accepting, lets open calls end within the drain time, and then
// ends what is left. Streams that would never end by themselves are told by
// stop.
func (w *writd) drain(servers []*listener, stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		var g errgroup.Group
		for _, s := range servers {
			g.Go(func() error { s.graceful(); return nil })
		}
		_ = g.Wait()
	}()
	stop()
	timer := time.NewTimer(w.cfg.Drain)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		for _, s := range servers {
			s.now()
		}
		<-done
	}
}

func (w *writd) program() audit.Program {
	return audit.Program{Name: "writd", Version: version.String(), Actor: identity.ServerID(w.td).String()}
}

// close releases what open took, last things first.
func (w *writd) close() error {
	var errs []error
	if w.stopFollowing != nil {
		w.stopFollowing()
	}
	if w.source != nil {
		errs = append(errs, w.source.Close())
	}
	if w.token != nil {
		errs = append(errs, w.token())
	}
	if w.upstream != nil {
		errs = append(errs, w.upstream.Close())
	}
	if w.store != nil {
		errs = append(errs, w.store.Close())
	}
	if w.record != nil {
		errs = append(errs, w.record.close())
	}
	if w.db != nil {
		errs = append(errs, w.db.Close())
	}
	if w.lock != nil {
		errs = append(errs, w.lock.Close())
	}
	w.traces.Close()
	return errors.Join(errs...)
}

// publish puts a file where others may read it, in one step.
func (w *writd) publish(name string, data []byte) error {
	if err := atomicfile.Write(w.path("public", name), data, 0o644); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	return nil
}

// publishBundles keeps public/bundle.pem current.
func (w *writd) publishBundles(ctx context.Context) error {
	for {
		bundle, changed := w.issuer.Bundle()
		if err := w.publish("bundle.pem", bundle.PEM()); err != nil {
			w.log.Error("the trust bundle on disk is behind", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// loopbackOnly is a listener for what is not authenticated.
func loopbackOnly(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		l.Close()
		return nil, fmt.Errorf("%s is not a loopback address", addr)
	}
	return l, nil
}

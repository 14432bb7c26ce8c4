package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/collect"
	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/version"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/follow"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/proxy"
	"github.com/writ-dev/writ/proxy/admin"
)

// flushTime is what the record gets to reach the collector at shutdown.
const flushTime = time.Second

// recordTime is how long the program waits for its own events to find room
// in the spool.
const recordTime = time.Second

// sidecar is the running program.
type sidecar struct {
	cfg      proxy.Config
	log      *slog.Logger
	source   *workloadapi.X509Source
	revoked  *revocation.Follower
	id       spiffeid.ID
	spool    *spool.Spool
	conn     *grpc.ClientConn
	proxy    *proxy.Proxy
	follower *follow.Follower
	admin    *admin.Server
	// decided is closed when there is a policy, or none is needed.
	decided     chan struct{}
	decidedOnce sync.Once
	// following ends with stopFollowing.
	following     sync.WaitGroup
	stopFollowing context.CancelFunc
	// recording ends with the spool.
	recording sync.WaitGroup
}

// serve runs the sidecar until ctx ends: identity first, then the record, then
// the listeners; and back in the other order.
func serve(ctx context.Context, cfg proxy.Config, log *slog.Logger) (err error) {
	// The heap stays small, and doubling it before collecting costs little.
	debug.SetGCPercent(200)
	s := &sidecar{cfg: cfg, log: log, decided: make(chan struct{})}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while it waited
		}
		return err
	}
	return s.run(ctx)
}

func (s *sidecar) open(ctx context.Context) (err error) {
	daemon.Notify(s.log, "STATUS=waiting for an SVID from "+s.cfg.WorkloadAPI)
	s.source, err = workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.cfg.WorkloadAPI)))
	if err != nil {
		return fmt.Errorf("SVID from %s: %w", s.cfg.WorkloadAPI, err)
	}
	svid, err := s.source.GetX509SVID()
	if err != nil {
		return err
	}
	s.id = svid.ID
	if err := s.followRevocations(ctx); err != nil {
		return err
	}
	if err := s.openSpool(); err != nil {
		return err
	}
	if err := s.dial(); err != nil {
		return err
	}
	metrics := admin.NewMetrics()
	s.proxy, err = proxy.New(proxy.Options{Config: s.cfg, Source: s.source, Revocations: s.revoked, Recorder: s.spool, Metrics: metrics, Log: s.log})
	if err != nil {
		return err
	}
	s.revocationGauges(metrics)
	metrics.Gauge("writ_audit_pending_events", "Events that the collector has not acknowledged.", func() float64 { return float64(s.spool.Status().Pending) })
	metrics.Gauge("writ_audit_spool_bytes", "Bytes that the spool takes on disk.", func() float64 { return float64(s.spool.Status().Bytes) })
	metrics.Gauge("writ_audit_dropped_events", "Events dropped because the spool was full.", func() float64 { return float64(s.spool.Status().Dropped) })
	if err := s.follow(); err != nil {
		return err
	}
	s.admin, err = admin.Listen(admin.Config{Addr: s.cfg.Admin, Metrics: metrics, Waiting: s.proxy.Waiting, Log: s.log})
	if err != nil {
		return err
	}
	return s.proxy.Listen(ctx)
}

func (s *sidecar) openSpool() (err error) {
	s.spool, err = spool.Open(spool.Config{
		Dir: s.cfg.Audit.Dir, MaxBytes: s.cfg.Audit.MaxBytes, OnFull: spool.OnFull(s.cfg.Audit.OnFull), Stream: s.id,
		AllowHeaders: s.cfg.Audit.Headers, AllowQuery: s.cfg.Audit.Query, Log: s.log,
		SignGap: func(statement []byte) ([]byte, [][]byte, error) {
			svid, err := s.source.GetX509SVID()
			if err != nil {
				return nil, nil, err
			}
			return audit.SignGapWith(svid.PrivateKey, svid.Certificates)(statement)
		},
	})
	return err
}

// dial prepares the connection to the control plane. It is made when it is
// first used, and again whenever it breaks, with the SVID of that moment.
func (s *sidecar) dial() error {
	server, err := spiffeid.FromString(s.cfg.Control.SPIFFEID)
	if err != nil {
		return fmt.Errorf("control.spiffe_id: %w", err)
	}
	config := tlsconfig.MTLSClientConfig(s.source, s.source, tlsconfig.AuthorizeID(server))
	config.MinVersion = tls.VersionTLS13
	config.VerifyConnection = func(state tls.ConnectionState) error { return s.revoked.Check(state.PeerCertificates[0], server) }
	s.conn, err = grpc.NewClient(s.cfg.Control.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(bundle.MaxContentBytes+1<<20)),
	)
	return err
}

// follow prepares following policy; a workload that only calls others has none
// to enforce.
func (s *sidecar) follow() error {
	if len(s.cfg.Policy.Keys) == 0 {
		s.decidedOnce.Do(func() { close(s.decided) })
		return nil
	}
	keys, err := bundle.LoadKeys(s.cfg.Policy.Keys...)
	if err != nil {
		return fmt.Errorf("policy.keys: %w", err)
	}
	publishers, optional, err := s.publishers()
	if err != nil {
		return err
	}
	var outside *opa.Outside
	if s.cfg.Policy.AllowOutside {
		outside = &opa.Outside{Env: os.LookupEnv}
	}
	s.follower, err = follow.New(follow.Config{
		Outside: outside,
		Conn:    s.conn, Keys: keys, Publishers: publishers, Optional: optional, Dir: s.cfg.Policy.Dir, Service: s.cfg.Service, Log: s.log,
		Instance: s.spool.Stream().Instance,
		SPIFFEID: func() spiffeid.ID { return s.id },
		Report: func() *policyv1.Report {
			return &policyv1.Report{
				Version: version.String(), NotEnforced: s.proxy.NotEnforced(), SvidExpires: s.proxy.Expires().UnixNano(), Problems: s.problems(),
			}
		},
		Activate: func(snapshot *policy.Snapshot) {
			s.proxy.SetSnapshot(snapshot)
			s.decidedOnce.Do(func() { close(s.decided) })
		},
		Contacted: s.proxy.Contacted,
		Emit: func(_ context.Context, act identity.Act) error {
			s.tellRefused(act.Reason)
			return s.record(audit.FromAct(act, time.Now()))
		},
	})
	return err
}

func (s *sidecar) run(ctx context.Context) error {
	program := audit.Program{Name: "writ-sidecar", Version: version.String(), Actor: s.id.String()}
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	shipping, stopShipping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopShipping()
	serving, stopServing := context.WithCancelCause(ctx)
	defer stopServing(nil)

	// Before anything is recorded: a spool that the last process left full has
	// no room until the collector has it.
	shipped := make(chan error, 1)
	go func() {
		shipped <- collect.Ship(shipping, collect.Config{Conn: s.conn, Spool: s.spool, Log: s.log, Flush: flushTime})
	}()
	if err := s.record(program.Started(time.Now())); err != nil {
		stopShipping()
		<-shipped
		return err
	}
	var owned sync.WaitGroup
	failed := make(chan error, 2)
	daemon.Notify(s.log, "STATUS=waiting for policy")
	if s.follower != nil {
		owned.Go(func() {
			if err := s.follower.Run(background); err != nil && background.Err() == nil {
				failed <- fmt.Errorf("follow policy: %w", err)
			}
		})
	}
	owned.Go(func() {
		if err := s.admin.Serve(background); err != nil {
			failed <- err
		}
	})
	owned.Go(func() { s.ready(serving) })
	go func() {
		select {
		case err := <-failed:
			stopServing(err)
		case <-background.Done():
		}
	}()

	err := s.proxy.Serve(serving)
	if cause := context.Cause(serving); ctx.Err() == nil && cause != nil {
		err = errors.Join(err, cause)
	}
	daemon.Notify(s.log, daemon.Stopping)
	err = errors.Join(err, s.record(program.Stopped(time.Now())))
	stopBackground()
	owned.Wait()
	stopShipping()
	if serr := <-shipped; serr != nil {
		s.log.Warn("the record is kept here until the collector has it", "error", serr)
	}
	return err
}

// record records an event of the program itself. A spool without room does
// not keep the program from running or from ending: it denies requests, or has
// them wait, and only a sidecar that runs can empty it.
func (s *sidecar) record(ev audit.Event) error {
	recorded := make(chan error, 1)
	s.recording.Go(func() {
		_, err := s.spool.Record(&ev)
		recorded <- err
	})
	limit := time.NewTimer(recordTime)
	defer limit.Stop()
	err := audit.ErrFull
	select {
	case err = <-recorded:
	case <-limit.C: // on_full: block; it goes on waiting for room
	}
	if errors.Is(err, audit.ErrFull) {
		s.log.Warn("the spool is full until the collector takes what it holds", "event", ev.Action.Verb, "pending", s.spool.Status().Pending)
		return nil
	}
	return err
}

// maxStatus is how long a status may be, bytes: service managers take 4,096 for all of
// a notification.
const maxStatus = 1024

// tellRefused tells the service manager why there is no policy yet. Where one decides,
// the control plane and the log have it.
func (s *sidecar) tellRefused(why string) {
	select {
	case <-s.decided:
		return
	default:
	}
	status := "waiting for policy: refused: " + strings.Join(strings.Fields(why), " ")
	if len(status) > maxStatus {
		status = strings.ToValidUTF8(status[:maxStatus], "") + "…"
	}
	daemon.Notify(s.log, "STATUS="+status)
}

// ready tells the service manager once requests are being decided.
func (s *sidecar) ready(ctx context.Context) {
	select {
	case <-s.decided:
	case <-ctx.Done():
		return
	}
	s.log.Info("ready", "spiffe_id", s.id.String(), "service", s.cfg.Service)
	daemon.Notify(s.log, daemon.Ready+"\nSTATUS=serving as "+s.id.String())
}

func (s *sidecar) close() error {
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.spool != nil {
		errs = append(errs, s.spool.Close())
		s.recording.Wait()
	}
	if s.stopFollowing != nil {
		s.stopFollowing()
		s.following.Wait()
	}
	if s.source != nil {
		errs = append(errs, s.source.Close())
	}
	return errors.Join(errs...)
}

// problems are what an operator should see in the status: requests are being
// denied, or soon will be.
func (s *sidecar) problems() []string {
	var list []string
	st := s.spool.Status()
	if st.Err != nil {
		list = append(list, "events cannot be recorded: "+st.Err.Error())
	}
	if st.Dropped > 0 {
		list = append(list, fmt.Sprintf("%d events were dropped because the spool was full", st.Dropped))
	}
	if why := s.revoked.Problem(); why != "" {
		list = append(list, why)
	}
	for _, why := range s.proxy.Waiting() {
		if why != "starting" {
			list = append(list, why)
		}
	}
	return list
}

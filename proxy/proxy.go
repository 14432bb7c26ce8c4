package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/admin"
	"github.com/writ-dev/writ/proxy/mtls"
)

// defaultMaxHeadBytes is the largest request head accepted when the
// configuration says nothing.
const defaultMaxHeadBytes = 64 << 10

// defaultMaxConnectionAge is how long an inbound connection may serve when the
// configuration says nothing.
const defaultMaxConnectionAge = time.Hour

// Options is what a Proxy is made of.
type Options struct {
	Config Config
	// Source must have an SVID already. The Proxy is the reader of its Updated.
	Source identity.Source
	// Revocations end SVIDs before they expire; nil for none.
	Revocations Revocations
	// Recorder takes every decision and refusal.
	Recorder audit.Recorder
	// Metrics may be nil.
	Metrics *admin.Metrics
	Log     *slog.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// HeadTimeout bounds a TLS handshake, and the reading of a request head;
	// 10 s when 0.
	HeadTimeout time.Duration
}

// Proxy is the sidecar of one workload.
//
// It denies everything until SetSnapshot. Serve runs it and returns when it
// has drained.
type Proxy struct {
	opts     Options
	id       spiffeid.ID
	log      *slog.Logger
	enforcer *pep.Enforcer

	mu       sync.Mutex
	inbound  *inbound
	outbound []*outbound
	// base is the context of every request; ending it ends them.
	base    context.Context
	endBase context.CancelFunc

	serving  atomic.Bool
	draining atomic.Bool
}

// New makes a Proxy for the workload whose SVID the source has.
func New(opts Options) (*Proxy, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Metrics == nil {
		opts.Metrics = admin.NewMetrics()
	}
	svid, err := opts.Source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("sidecar without an identity: %w", err)
	}
	if td := svid.ID.TrustDomain().Name(); td != opts.Config.TrustDomain {
		return nil, fmt.Errorf("the Workload API gave %s, and the configured trust domain is %s", svid.ID, opts.Config.TrustDomain)
	}
	stale := pep.Alarm
	if opts.Config.Policy.MaxAgeAction == "deny" {
		stale = pep.DenyStale
	}
	p := &Proxy{opts: opts, id: svid.ID, log: opts.Log}
	p.enforcer, err = pep.New(pep.Config{
		Service: opts.Config.Service, ID: svid.ID, Recorder: opts.Recorder,
		MaxPolicyAge: opts.Config.Policy.MaxAge, OnStale: stale,
		Now: opts.Now, Log: opts.Log, Observe: opts.Metrics.Decided,
	})
	if err != nil {
		return nil, err
	}
	p.enforcer.SawSignedTime(svid.Certificates[0].NotBefore)
	p.base, p.endBase = context.WithCancel(context.Background())
	p.registerGauges()
	return p, nil
}

// ID is the SPIFFE ID of the workload.
func (p *Proxy) ID() spiffeid.ID { return p.id }

// SetSnapshot puts a policy revision in force for every request that begins
// afterwards; open requests are decided again.
func (p *Proxy) SetSnapshot(s *policy.Snapshot) { p.enforcer.SetSnapshot(s) }

// Snapshot is the revision in force, nil when there is none.
func (p *Proxy) Snapshot() *policy.Snapshot { return p.enforcer.Snapshot() }

// Contacted tells when the control plane last confirmed the policy.
func (p *Proxy) Contacted(t time.Time) { p.enforcer.Contacted(t) }

// Expires is when the SVID in use ends.
func (p *Proxy) Expires() time.Time {
	svid, err := p.opts.Source.GetX509SVID()
	if err != nil {
		return time.Time{}
	}
	return svid.Certificates[0].NotAfter
}

// Waiting says why requests would not be decided at the moment; empty is
// ready.
func (p *Proxy) Waiting() []string {
	var why []string
	switch {
	case p.draining.Load():
		why = append(why, "draining")
	case !p.serving.Load():
		why = append(why, "starting")
	}
	if problem := p.enforcer.Problem(); problem != "" && p.opts.Config.Inbound != nil {
		why = append(why, problem)
	}
	if end := p.Expires(); !p.enforcer.Now().Before(end) {
		why = append(why, "the X509-SVID expired at "+end.UTC().Format(time.RFC3339))
	}
	return why
}

// NotEnforced names each way around enforcement that is open, in a sentence.
func (p *Proxy) NotEnforced() []string {
	var ways []string
	if in := p.opts.Config.Inbound; in != nil {
		if way := in.appBypass(); way != "" {
			ways = append(ways, way)
		}
	}
	for i := range p.opts.Config.Upstreams {
		if way := p.opts.Config.Upstreams[i].bypass(); way != "" {
			ways = append(ways, way)
		}
	}
	return ways
}

// Listen opens all listeners, or none. Serve does it when it has not been
// done; a caller that wants to know the addresses does it before.
func (p *Proxy) Listen(ctx context.Context) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inbound != nil || len(p.outbound) > 0 {
		return nil
	}
	defer func() {
		if err != nil {
			for _, o := range p.outbound {
				o.close()
			}
			p.outbound = nil
		}
	}()
	for _, cfg := range p.opts.Config.Upstreams {
		o, err := newOutbound(p, cfg, p.base)
		if err != nil {
			return err
		}
		p.outbound = append(p.outbound, o)
	}
	cfg := p.opts.Config.Inbound
	if cfg == nil {
		return nil
	}
	tcp, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("inbound listener: %w", err)
	}
	if p.inbound, err = newInbound(p, *cfg, tcp, p.base); err != nil {
		tcp.Close()
		return err
	}
	return nil
}

// InboundAddr is where other workloads reach this one, after Listen; nil when
// they do not.
func (p *Proxy) InboundAddr() net.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inbound == nil {
		return nil
	}
	return p.inbound.listener.Addr()
}

// UpstreamAddr is where the application reaches the upstream, after Listen;
// nil when there is none of that name.
func (p *Proxy) UpstreamAddr(name string) net.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.outbound, func(o *outbound) bool { return o.cfg.Name == name })
	if i < 0 {
		return nil
	}
	return p.outbound[i].listener.Addr()
}

// Serve runs the proxy until ctx ends, then drains: it is not ready, accepts
// nothing more, and gives open requests the configured time before it ends
// them. Requests out are carried until the requests in have ended. Recorder
// and source are left to their owner, who closes them afterwards: closing a
// recorder that blocks ends what still waits for it.
func (p *Proxy) Serve(ctx context.Context) error {
	if err := p.Listen(ctx); err != nil {
		return err
	}
	accepting, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatching()
	run := newRunner()
	if p.inbound != nil {
		p.inbound.serve(accepting, run)
		run.start("policy watch", func() error { p.inbound.pep.Watch(watching); return nil })
	}
	for _, o := range p.outbound {
		o.serve(run)
	}
	run.start("identity", func() error { return p.rotate(watching) })
	p.serving.Store(true)

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-run.failed:
	}
	p.draining.Store(true)
	stopAccepting()
	p.drain()
	stopWatching()
	p.finish(run)
	return failed
}

// finish records what was only counted, and waits for what Serve started. A
// recorder that blocks must not block the end: what waits for it then ends
// with it.
func (p *Proxy) finish(run *runner) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run.wait()
		if p.inbound != nil {
			p.inbound.refusals.flush()
		}
		for _, o := range p.outbound {
			o.refusals.flush()
		}
	}()
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
		p.log.Warn("the recorder blocks: refusals that were counted are not on record yet")
	}
}

func (p *Proxy) drain() {
	timeout := max(p.opts.Config.Drain, 0)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if p.inbound != nil {
		p.inbound.shutdown(ctx)
	}
	drain(ctx, p.eachOutbound()...)
	// What is still open now has had its time: its context ends, its connection
	// is closed, and its handler is waited for, because it may be recording.
	// A recorder that blocks must not block the end.
	p.endBase()
	last, cancelLast := context.WithTimeout(context.Background(), time.Second)
	defer cancelLast()
	if p.inbound != nil {
		p.inbound.close()
		p.inbound.inflight.wait(last)
	}
	for _, o := range p.outbound {
		o.close()
		o.inflight.wait(last)
	}
}

func (p *Proxy) eachOutbound() []func(context.Context) error {
	var fns []func(context.Context) error
	for _, o := range p.outbound {
		fns = append(fns, func(ctx context.Context) error { o.shutdown(ctx); return nil })
	}
	return fns
}

// drain runs shutdowns side by side.
func drain(ctx context.Context, shutdowns ...func(context.Context) error) {
	var wg sync.WaitGroup
	for _, f := range shutdowns {
		wg.Go(func() { _ = f(ctx) })
	}
	wg.Wait()
}

// Revocations says which SVIDs are revoked. A revocation.Follower is one.
type Revocations interface {
	// Check refuses an X509-SVID that is revoked.
	Check(leaf *x509.Certificate, id spiffeid.ID) error
	// Changed is closed when Check may say otherwise than now.
	Changed() <-chan struct{}
}

// revoked is the check of a peer's SVID, nil for none.
func (p *Proxy) revoked() mtls.Revoked {
	if p.opts.Revocations == nil {
		return nil
	}
	return p.opts.Revocations.Check
}

// reverify ends the connections with peers that no longer prove who they are.
func (p *Proxy) reverify() {
	if p.inbound != nil {
		p.inbound.listener.Reverify()
	}
	for _, o := range p.outbound {
		o.pool.Reverify()
	}
}

// rotate retires connections when the identity changes.
func (p *Proxy) rotate(ctx context.Context) error {
	var revoked <-chan struct{}
	if p.opts.Revocations != nil {
		revoked = p.opts.Revocations.Changed()
		p.reverify() // what changed before that
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.opts.Source.Updated():
		case <-revoked:
			revoked = p.opts.Revocations.Changed()
			p.reverify()
			continue
		}
		// An authority may be gone from the bundle.
		p.reverify()
		svid, err := p.opts.Source.GetX509SVID()
		if err != nil {
			p.log.Error("identity update without an SVID", "error", err)
			continue
		}
		if svid.ID != p.id {
			// Decisions, record and catalogue stand under the old name.
			return fmt.Errorf("the Workload API changed the identity from %s to %s", p.id, svid.ID)
		}
		leaf := svid.Certificates[0]
		p.enforcer.SawSignedTime(leaf.NotBefore)
		p.log.Info("identity rotated", "serial", leaf.SerialNumber.String(), "expires", leaf.NotAfter)
		for _, o := range p.outbound {
			o.pool.Retire()
		}
	}
}

func (p *Proxy) registerGauges() {
	m := p.opts.Metrics
	m.Gauge("writ_svid_expiry_timestamp_seconds", "When the X509-SVID in use ends, Unix time.", func() float64 { return unix(p.Expires()) })
	m.Gauge("writ_policy_revision", "Number of the policy revision in force; 0 is none.", func() float64 {
		if s := p.enforcer.Snapshot(); s != nil {
			return float64(s.Revision.Number)
		}
		return 0
	})
	m.Gauge("writ_policy_activated_timestamp_seconds", "When the revision in force was activated, Unix time.", func() float64 {
		if s := p.enforcer.Snapshot(); s != nil {
			return unix(s.Activated)
		}
		return 0
	})
	m.Gauge("writ_inbound_connections", "Open inbound connections.", func() float64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.inbound == nil {
			return 0
		}
		return float64(p.inbound.listener.Open())
	})
	m.Gauge("writ_open_requests", "Inbound requests allowed and not ended.", func() float64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.inbound == nil {
			return 0
		}
		return float64(p.inbound.pep.Open())
	})
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// runner owns goroutines and waits for them.
type runner struct {
	wg     sync.WaitGroup
	failed chan error
}

func newRunner() *runner { return &runner{failed: make(chan error, 1)} }

func (r *runner) start(name string, f func() error) {
	r.wg.Go(func() {
		if err := f(); err != nil && !errors.Is(err, context.Canceled) {
			select {
			case r.failed <- fmt.Errorf("%s: %w", name, err):
			default: // only the first counts
			}
		}
	})
}

func (r *runner) wait() { r.wg.Wait() }

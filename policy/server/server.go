// Package server is the control plane's side of policy: it takes policy in
// (policyv1.Admin) and hands it out (policyv1.Distribution).
//
// One revision is in force, or during a rollout two. A push is verified, checked and tested, put on
// record, stored, and then swapped in; followers get their slice of it within
// the same moment. What is refused changes nothing.
package server

import (
	"context"
	"crypto"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/program"
	"github.com/writ-dev/writ/policy/rules"
)

// MaxMessageBytes is the message size that a gRPC server of these services
// must admit.
const MaxMessageBytes = bundle.MaxContentBytes + 1<<20

// DefaultHeartbeat is how often a follower hears that nothing changed.
const DefaultHeartbeat = 10 * time.Second

// Config is what a Server needs. Publishers, AllowUnsigned and what has a
// default may be left out.
type Config struct {
	// DB holds the revisions; see revisions.Open.
	DB *sql.DB
	// DecisionKey signs slices: ECDSA P-256, and not a CA's.
	DecisionKey crypto.Signer
	// Publishers may push, each what it owns; nobody when nil.
	Publishers *owners.Set
	// AllowUnsigned admits sources without a signature, as the part of a
	// publisher that owns everything. A signature that is there must verify all
	// the same.
	AllowUnsigned bool
	// Approvers may approve proposals. With any, a broken glass takes the
	// signatures of those whom it names; without, their names are believed.
	Approvers []Approver
	// Approvals that every activation takes, by others than its author.
	Approvals int
	// Emit puts what happens to policy on record. It must not write to DB.
	Emit identity.Emit
	// Actor names who is at the other end of an admin call.
	Actor func(ctx context.Context) string
	// PeerID is the verified SPIFFE ID at the other end of a control stream.
	PeerID func(ctx context.Context) (spiffeid.ID, error)
	Log    *slog.Logger
	// Clock is time.Now when nil.
	Clock func() time.Time
	// Heartbeat is DefaultHeartbeat when 0.
	Heartbeat time.Duration
	// DecisionTimeout of one decision; opa.DefaultTimeout when 0.
	DecisionTimeout time.Duration
}

// Server implements both services. Create it with New, and Close it: it watches
// the clock.
type Server struct {
	cfg   Config
	store *revisions.Store
	peers peers

	// admin is held during an activation, so that they follow one another.
	admin sync.Mutex
	// parts of what is in force, guarded by admin. They are there even when
	// what is in force cannot be prepared.
	parts []bundle.Part

	mu      sync.Mutex
	active  *active
	rollout *rollout      // nil when none runs
	changed chan struct{} // closed when active or rollout changes
	closed  bool

	done    chan struct{}
	streams sync.WaitGroup
}

// active is the revision in force.
type active struct {
	info      revisions.Info
	content   bundle.Content
	parts     []bundle.Part
	cutter    *bundle.Cutter
	catalogue bundle.Catalogue
	snapshot  *policy.Snapshot
	// compiled is nil where slices carry sources only.
	compiled *program.Program
	// expiries are of rules that go on denying.
	expiries []rules.Expiry

	mu     sync.Mutex
	slices map[spiffeid.ID][]byte
	// packed are the archives of parts, for followers that trust publishers.
	packed func() ([][]byte, error)
}

// New opens the store and puts the last revision in force again. If that one
// no longer compiles (a newer build may be stricter), followers keep what they
// have, the log says why, and a push mends it.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.DB == nil || cfg.DecisionKey == nil || cfg.Emit == nil || cfg.Actor == nil || cfg.PeerID == nil || cfg.Log == nil {
		return nil, errors.New("policy server: incomplete configuration")
	}
	if cfg.Approvals > 0 && cfg.AllowUnsigned {
		return nil, errors.New("policy server: approvals take signed policy: what nobody signed has no author to tell from its approvers")
	}
	if _, err := bundle.KeyID(cfg.DecisionKey.Public()); err != nil {
		return nil, fmt.Errorf("policy server: decision key: %w", err)
	}
	if cfg.Publishers == nil {
		cfg.Publishers = owners.One(owners.Default, nil)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = DefaultHeartbeat
	}
	store, err := revisions.Open(ctx, cfg.DB)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, store: store, changed: make(chan struct{}), done: make(chan struct{})}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if err := s.moveKnown(ctx); err != nil {
		return nil, err
	}
	s.streams.Go(s.watchExpiries)
	return s, nil
}

// load finds what was in force, and the rollout that ran.
func (s *Server) load(ctx context.Context) error {
	info, content, err := s.store.Get(ctx, 0)
	if errors.Is(err, revisions.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.parts, err = s.store.PartsOf(ctx, info, content); err != nil {
		return err
	}
	if s.active, err = s.prepare(ctx, info, content, s.parts); err != nil {
		s.cfg.Log.Error("policy in force cannot be prepared", "revision", info.Revision.String(), "error", err)
	}
	return s.resume(ctx)
}

// RegisterAdmin serves policyv1.Admin; for the admin socket only.
func (s *Server) RegisterAdmin(r grpc.ServiceRegistrar) {
	policyv1.RegisterAdminServer(r, &adminService{Server: s})
}

// RegisterDistribution serves policyv1.Distribution; for the control listener.
func (s *Server) RegisterDistribution(r grpc.ServiceRegistrar) {
	policyv1.RegisterDistributionServer(r, &distributionService{Server: s})
}

// Active is the revision in force, nil when there is none.
func (s *Server) Active() *policy.Snapshot {
	if a, _ := s.current(); a != nil {
		return a.snapshot
	}
	return nil
}

// Decide implements policy.Decider on the revision in force.
func (s *Server) Decide(ctx context.Context, in *policy.Input, out *policy.Decision) {
	if snapshot := s.Active(); snapshot != nil {
		snapshot.Decider.Decide(ctx, in, out)
		return
	}
	out.Reset()
	out.Verdict, out.Tier, out.Reason = policy.Deny, policy.Enforcement, "no policy in force"
}

// Close ends the streams of followers and waits for them.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.streams.Wait()
}

// current is what is in force and a channel that is closed when it changes.
func (s *Server) current() (*active, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active, s.changed
}

func (s *Server) swap(a *active) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.rollout = a, nil
	s.tell()
}

func (s *Server) swapCanary(r *rollout) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rollout = r
	s.tell()
}

// tell wakes up who waits for a change. mu is held.
func (s *Server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) prepare(ctx context.Context, info revisions.Info, content bundle.Content, parts []bundle.Part) (*active, error) {
	program, err := opa.Load(content)
	if err != nil {
		return nil, err
	}
	c := &candidate{content: content, parts: parts, program: program}
	now := info // What it was given out with stays in info.
	if err := s.compile(ctx, c, &now); err != nil {
		return nil, err
	}
	return s.ready(info, c)
}

// ready makes a program ready to decide and to be cut.
func (s *Server) ready(info revisions.Info, c *candidate) (*active, error) {
	snapshot, err := s.snapshot(info, c.program)
	if err != nil {
		return nil, err
	}
	cutter, err := bundle.NewCutter(c.content)
	if err != nil {
		return nil, err
	}
	parts := c.parts // And nothing else of c is kept by packed.
	return &active{
		info: info, content: c.content, parts: c.parts, cutter: cutter, catalogue: c.program.Catalogue(), snapshot: snapshot, compiled: c.compiled,
		expiries: denialsThatExpire(c.program.Rules()),
		slices:   map[spiffeid.ID][]byte{},
		packed:   sync.OnceValues(func() ([][]byte, error) { return bundle.Pack(parts) }),
	}, nil
}

// snapshot decides by the evaluator.
func (s *Server) snapshot(info revisions.Info, program *opa.Program) (*policy.Snapshot, error) {
	return program.Snapshot(opa.SnapshotConfig{Revision: info.Revision, Activated: info.Activated, Timeout: s.cfg.DecisionTimeout})
}

// slice cuts and signs once per SPIFFE ID.
func (a *active) slice(id spiffeid.ID, key crypto.Signer) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if sealed, ok := a.slices[id]; ok {
		return sealed, nil
	}
	cut, err := a.cutter.Cut(bundle.SliceConfig{Revision: a.info.Revision, Activated: a.info.Activated, SPIFFEID: id})
	if err != nil {
		return nil, err
	}
	if a.compiled != nil {
		cut.Program = compile.Part(a.compiled, cut.Services)
	}
	sealed, err := cut.Seal(key)
	if err != nil {
		return nil, err
	}
	a.slices[id] = sealed
	return sealed, nil
}

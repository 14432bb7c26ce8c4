// Package agent is the part of a node agent that speaks to the issuer: it
// proves the node, fetches the entries the node is entitled to, and keeps a
// fresh SVID for each. It works with any issuer that speaks SPIRE's server API,
// and is a workload.Source.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/limit"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/internal/tracing"
)

// ErrBanned is returned by Run when the issuer has banned this agent. Starting
// again does not help until an administrator deletes the agent there.
var ErrBanned = errors.New("the issuer has banned this agent: an administrator has to evict it there (policyctl agent evict) before the node can be attested anew")

// ErrNoToken is returned by Run when the node must be attested and there is no
// join token that was not used before.
var ErrNoToken = errors.New("no join token")

// NodeAttestor proves the node by something that it can show again and again.
type NodeAttestor interface {
	// Type is the name of the method in SPIRE's server API.
	Type() string
	// Begin returns what is shown first, and what answers each challenge.
	Begin(context.Context) (payload []byte, answer func(challenge []byte) ([]byte, error), err error)
}

// Options are what an Agent needs beside its configuration file.
type Options struct {
	// Token returns the join token there is now, or "".
	Token func() (string, error)
	// Attestor proves the node in place of join tokens.
	Attestor NodeAttestor
	Log      *slog.Logger
	// Tracer, if given, traces what the agent does.
	Tracer *tracing.Tracer
	// Dial connects to the issuer; TCP if nil.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Agent keeps SVIDs for the workloads of one node.
type Agent struct {
	cfg      Config
	opt      Options
	td       spiffeid.TrustDomain
	issuerID spiffeid.ID
	log      *slog.Logger

	keep  *keep
	self  self
	link  *link
	cache *cache
	jwt   *tokens
	// instanceLimits are of new instances, by user: each is a signature.
	instanceLimits *limit.Limits[uint32]
	// revoked is what the issuer has revoked, as far as it was heard.
	revoked revocation.Set

	// reattest tells that the SVID is renewed by attesting anew: what the issuer
	// said of it, and until then whether there is something to do it with.
	reattest atomic.Bool
	// firstServer is where this agent begins among the replicas.
	firstServer int
	connections atomic.Int64
	// notKept is why the kept SVID cannot be used.
	notKept error
	// issuerAhead is how far the issuer's clock was ahead of this one when it was
	// last heard, a time.Duration.
	issuerAhead atomic.Int64
	// kick asks for a sync now, and causes are what the loop's next step is for.
	kick     chan struct{}
	causes   tracing.Causes
	ready    chan struct{}
	watching atomic.Bool
	// trusted is the trust in force, and renewBy when its coming into force has
	// the own SVID renewed, zero if it does not.
	trusted atomic.Pointer[trust]
	renewBy time.Time
	// told is what the issuer said last. Only the loop looks at it.
	told told
	// postedSerial is of the bundle that the issuer was last told of.
	postedSerial uint64

	stats struct {
		syncs, syncErrors, signed, signErrors, renewals, jwtSigned, received atomic.Uint64
		lastSync                                                             atomic.Int64
		refused                                                              map[template.Reason]*atomic.Uint64
	}
}

// New returns an Agent for a valid configuration. It opens the data directory
// and connects to nothing.
func New(cfg Config, opt Options) (*Agent, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	a := &Agent{
		cfg: cfg, opt: opt, td: td, issuerID: identity.IssuerID(td), log: opt.Log,
		cache: newCache(), jwt: newTokens(), instanceLimits: limit.New[uint32](newPerSecond, newBurst),
		kick:        make(chan struct{}, 1),
		ready:       make(chan struct{}),
		firstServer: rand.IntN(1 << 16),
	}
	a.stats.refused = newRefusals()
	a.reattest.Store(opt.Attestor != nil)
	if a.keep, err = openKeep(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	a.loadRevoked()
	a.link = newLink(len(cfg.servers())-1, func(l *link) (*session, error) { return a.dial(l, a.mutualTLS()) })
	return a, nil
}

// Ready is closed once the entries are known and their SVIDs signed.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Status is a look at an Agent.
type Status struct {
	// ID and Expires are of the agent's own SVID.
	ID      spiffeid.ID
	Expires time.Time
	// Entries the node is entitled to, and how many of them have a valid SVID.
	Entries, SVIDs int
	// Templates the node is entitled to, instances of them that workloads hold,
	// and how many of those have a valid SVID.
	Templates, Instances, InstanceSVIDs int
	// LastSync is when the entries were last known to be current.
	LastSync time.Time
	// Watching tells that the issuer pushes changes.
	Watching bool
	// Revocations in force, and when they were last known to be all; zero for
	// never.
	Revocations          int
	RevocationsCurrentAt time.Time
	// WithoutCRL is how many authorities have no CRL, where CRLs are on.
	WithoutCRL int
	// IssuerAhead is how far the issuer's clock was ahead of this machine's when
	// it was last heard, with what the network took; 0 where it never was.
	IssuerAhead time.Duration

	Syncs, SyncErrors, Signed, SignErrors, Renewals, JWTSigned uint64
	// EntriesReceived counts entries that the issuer sent, also those that were
	// known.
	EntriesReceived uint64
}

// Status returns the present state.
func (a *Agent) Status() Status {
	s := Status{
		Watching: a.watching.Load(),
		Syncs:    a.stats.syncs.Load(), SyncErrors: a.stats.syncErrors.Load(),
		Signed: a.stats.signed.Load(), SignErrors: a.stats.signErrors.Load(),
		Renewals: a.stats.renewals.Load(), JWTSigned: a.stats.jwtSigned.Load(), EntriesReceived: a.stats.received.Load(),
	}
	if at := a.stats.lastSync.Load(); at != 0 {
		s.LastSync = time.Unix(0, at)
	}
	if own := a.self.svid.Load(); own != nil {
		s.ID, s.Expires = own.ID, own.Certificates[0].NotAfter
	}
	now := time.Now()
	s.Entries, s.SVIDs = a.cache.count(now)
	s.Templates, s.Instances, s.InstanceSVIDs = a.cache.countInstances(now)
	list, _ := a.revoked.Now()
	s.Revocations, s.RevocationsCurrentAt = list.Len(), a.revoked.CurrentAt()
	s.WithoutCRL = a.cache.countWithoutCRL()
	s.IssuerAhead = time.Duration(a.issuerAhead.Load())
	return s
}

// syncNow asks for a sync without waiting for it.
func (a *Agent) syncNow() {
	select {
	case a.kick <- struct{}{}:
	default: // one is already asked for
	}
}

// Package issuer serves SPIRE's server API (spire-api-sdk), and an entry watch and
// templates of Writ's own, on two gRPC servers: the issuer listener, TLS for agents, and
// the admin socket. There is one file per service.
//
// Who may call what is one table (rights.go); what is not in it is refused.
// Everything notable is emitted as an identity.Act before its result leaves,
// and a failed emit fails the call.
package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/limit"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/replicav1"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/identity/withheldv1"
	"github.com/writ-dev/writ/internal/health"
	"github.com/writ-dev/writ/internal/tracing"
)

// Config of an Issuer. TrustDomain, Store, CA and Emit are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Store       *sqlstore.Store
	CA          *ca.CA
	// Replica is the name of this process among those that share the store;
	// empty where there is one.
	Replica string
	// Emit records what is done. An error fails the call.
	Emit identity.Emit
	// EmitAll records many acts by one wait. Without it they are emitted one
	// after another.
	EmitAll identity.EmitAll
	Log     *slog.Logger
	// LogLevel is the level of Log, for the Logger service; without it the
	// level is fixed.
	LogLevel *slog.LevelVar
	// Clock is time.Now if nil. It is the CA's and the store's clock too.
	Clock func() time.Time
	// AgentSVIDLife is the life of an agent's SVID; the CA's default if zero.
	AgentSVIDLife time.Duration
	// JoinTokenLife is the life of a token that does not ask for another; ten
	// minutes if zero.
	JoinTokenLife time.Duration
	// AttestPerSecond and AttestBurst bound attestation attempts from one IP
	// address (one /64 of IPv6); 1 and 10 if zero. More wait, up to five
	// seconds, or are refused with ResourceExhausted.
	AttestPerSecond float64
	AttestBurst     int
	// SignPerSecond bounds the SVIDs signed for one agent, each of a batch
	// counted, with a burst of one second's worth; 500 if zero, no limit if
	// negative, for benchmarks. More wait, as above.
	SignPerSecond float64
	// SignAtOnce bounds the SVIDs that are being signed at once, for all agents
	// together; 512 for each processor if zero. SignWaiting bounds those that wait
	// then, in the order of their urgency; 16,384 for each processor if zero. Others
	// are refused with ResourceExhausted and a RetryInfo.
	SignAtOnce, SignWaiting int
	// AdminPolicy, when not nil, is asked about each call that an SVID marked
	// admin makes on the issuer listener; its error, for the wire, refuses it. req
	// is nil for a stream, about which it is asked once, before anything is read.
	AdminPolicy func(ctx context.Context, id spiffeid.ID, method string, req any) error
	// FederationRoots is federation.Client's Roots.
	FederationRoots func(spiffeid.TrustDomain) (*x509.CertPool, error)
	// Tracer, if given, traces what agents ask for and what they are told.
	Tracer *tracing.Tracer
	// Health, if given, gets the issuer's conditions added to what else it knows of
	// this program, and is run by its maker. Without it the issuer has its own.
	Health *health.Server
	// Attestors are the methods by which nodes may be attested; join tokens alone
	// if empty.
	Attestors []server.Attestor
}

// Issuer issues SVIDs. Its Run must be running.
type Issuer struct {
	cfg       Config
	store     *sqlstore.Store
	index     *registry.Index
	ca        *ca.CA
	log       *slog.Logger
	rights    map[string]right
	attestors map[string]server.Attestor
	attesting *limit.Limits[netip.Prefix]
	signing   *limit.Limits[spiffeid.ID] // nil: no limit
	refusing  *limit.Limits[spiffeid.ID] // of logging those whose clock is off
	refusals  refusals
	admission admission
	together  together
	self      *selfSVID
	refresher *federation.Refresher
	shown     struct {
		sync.Mutex
		shownBundle
	}
	// toldBundle is the trust bundle as agents were last told of it.
	toldBundle atomic.Pointer[taggedBundle]
	started    time.Time
	health     *health.Server
	// launchLevel is what LogLevel was at the start.
	launchLevel slog.Level
	// closing ends the streams that would never end by themselves.
	closing   chan struct{}
	closeOnce sync.Once
}

// New makes an Issuer. It starts nothing.
func New(cfg Config) (*Issuer, error) {
	if cfg.TrustDomain.IsZero() || cfg.Store == nil || cfg.CA == nil || cfg.Emit == nil {
		return nil, errors.New("issuer: trust domain, store, ca and emit are required")
	}
	if cfg.CA.TrustDomain() != cfg.TrustDomain {
		return nil, fmt.Errorf("issuer: trust domain is %q, the ca's %q", cfg.TrustDomain.Name(), cfg.CA.TrustDomain().Name())
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.AgentSVIDLife == 0 {
		cfg.AgentSVIDLife = cfg.CA.X509SVIDLife()
	}
	if cfg.JoinTokenLife == 0 {
		cfg.JoinTokenLife = 10 * time.Minute
	}
	if cfg.AttestPerSecond == 0 {
		cfg.AttestPerSecond = 1
	}
	if cfg.AttestBurst == 0 {
		cfg.AttestBurst = 10
	}
	if cfg.SignPerSecond == 0 {
		cfg.SignPerSecond = 500
	}
	if cfg.AgentSVIDLife < ca.MinSVIDLife || cfg.JoinTokenLife < time.Second || cfg.AttestPerSecond < 0 || cfg.AttestBurst < 0 || cfg.SignAtOnce < 0 || cfg.SignWaiting < 0 {
		return nil, fmt.Errorf("issuer: agent SVID life %v (at least %v), join token life %v (at least 1s), %v attestations per second, burst %d, %d signed at once, %d waiting: out of range",
			cfg.AgentSVIDLife, ca.MinSVIDLife, cfg.JoinTokenLife, cfg.AttestPerSecond, cfg.AttestBurst, cfg.SignAtOnce, cfg.SignWaiting)
	}
	i := &Issuer{
		cfg:       cfg,
		store:     cfg.Store,
		index:     cfg.Store.Index(),
		ca:        cfg.CA,
		log:       cfg.Log,
		rights:    methodRights(),
		admission: newAdmission(cfg.SignAtOnce, cfg.SignWaiting),
		together:  together{one: make(chan struct{}, 1)},
		refusals:  newRefusals(),
		closing:   make(chan struct{}),
		started:   cfg.Clock(),
	}
	if cfg.LogLevel != nil {
		i.launchLevel = cfg.LogLevel.Level()
	}
	var err error
	i.attesting = limit.New[netip.Prefix](cfg.AttestPerSecond, cfg.AttestBurst)
	i.refusing = limit.New[spiffeid.ID](1.0/60, 1)
	if cfg.SignPerSecond > 0 {
		i.signing = limit.New[spiffeid.ID](cfg.SignPerSecond, int(math.Ceil(cfg.SignPerSecond)))
	}
	if i.attestors, err = attestorsOf(cfg); err != nil {
		return nil, err
	}
	i.self = &selfSVID{issuer: i, id: identity.IssuerID(cfg.TrustDomain)}
	i.refresher = i.newRefresher()
	if i.health = cfg.Health; i.health == nil {
		i.health = health.New()
	}
	i.health.Add(i.canSign)
	i.health.Add(i.isFresh)
	i.health.Add(i.canWrite)
	return i, nil
}

// Register puts the services on a gRPC server: SPIRE's server API, the entry
// watch, templates, and Health. caller says who calls over this server:
// TLSCaller on the issuer listener; on the admin socket a func that returns
// LocalCaller for those who may administer.
func (i *Issuer) Register(s grpc.ServiceRegistrar, caller CallerFunc) {
	i.register(s, caller, &agentv1.Agent_ServiceDesc, &agentService{Issuer: i})
	i.register(s, caller, &bundlev1.Bundle_ServiceDesc, &bundleService{Issuer: i})
	i.register(s, caller, &entryv1.Entry_ServiceDesc, &entryService{Issuer: i})
	i.register(s, caller, &svidv1.SVID_ServiceDesc, &svidService{Issuer: i})
	i.register(s, caller, &trustdomainv1.TrustDomain_ServiceDesc, &trustDomainService{Issuer: i})
	i.register(s, caller, &loggerv1.Logger_ServiceDesc, &loggerService{Issuer: i})
	i.register(s, caller, &debugv1.Debug_ServiceDesc, &debugService{Issuer: i})
	i.register(s, caller, &localauthorityv1.LocalAuthority_ServiceDesc, &localAuthorityService{Issuer: i})
	i.register(s, caller, &watchv1.EntryWatch_ServiceDesc, &watchService{Issuer: i})
	i.register(s, caller, &replicav1.Admin_ServiceDesc, &replicaService{Issuer: i})
	i.register(s, caller, &withheldv1.Admin_ServiceDesc, &withheldService{Issuer: i})
	i.register(s, caller, &revocationv1.Admin_ServiceDesc, &revocationService{Issuer: i})
	i.register(s, caller, &templatev1.Admin_ServiceDesc, &templateService{Issuer: i})
	i.register(s, caller, &templatev1.Issuance_ServiceDesc, &issuanceService{Issuer: i})
	i.register(s, caller, &healthv1.Health_ServiceDesc, i.health)
}

// Run rotates authorities and prunes what has expired, until ctx ends. Then it
// ends the watches, so that the servers can drain.
func (i *Issuer) Run(ctx context.Context) error {
	defer i.closeOnce.Do(func() { close(i.closing) })
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if i.cfg.Health == nil {
		wg.Go(func() { i.health.Run(ctx) })
	}
	wg.Go(func() { i.prune(ctx) })
	wg.Go(func() { i.refresher.Run(ctx) })
	wg.Go(func() { i.follow(ctx) })
	wg.Go(func() { i.store.RunCheck(ctx) })
	return i.ca.Run(ctx)
}

// Bundle returns the current trust bundle, and a channel that is closed when
// there is another. Its PEM method is the form for bootstrap.
func (i *Issuer) Bundle() (*ca.Bundle, <-chan struct{}) { return i.ca.Bundle() }

func (i *Issuer) now() time.Time { return i.cfg.Clock() }

// Package ca holds the signing authorities of a trust domain and issues SVIDs.
//
// An authority is prepared and published in the bundle well before it signs,
// so that everyone knows it by then: with a life of L it is prepared when its
// predecessor has lived L/2 and activated when that has L/6 left. One that is
// prepared late, after a stop, is activated L/12 later, or after half of what
// its predecessor has left. Only where nothing else can sign is one activated as
// it is made. X.509 and JWT authorities rotate alike. Each step can be taken by
// hand as well, and two more: an authority that has been replaced is tainted,
// which has everything that it signed replaced at once, and then revoked, which
// takes it out of the bundle.
//
// Issuing takes two steps. Prepare checks what is asked for and returns a
// ticket; only a ticket can be issued, and only once. Between the two the
// caller puts the serial number on record.
package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/revocation"
)

const (
	// Backdate is how far before its making an SVID or authority is valid, for
	// clocks that are behind.
	Backdate = 10 * time.Second
	// MinSVIDLife is the shortest life that can be asked for.
	MinSVIDLife = 10 * time.Second
	// MinLife is the shortest life of an authority.
	MinLife = 30 * time.Second
	// maxLife of an authority: ten years.
	maxLife = 10 * 366 * 24 * time.Hour
)

// Journal keeps what the CA knows about its authorities. The keys themselves
// are in the key store.
type Journal interface {
	// LoadJournal returns what SaveJournal kept last, nil if nothing.
	LoadJournal(ctx context.Context) ([]byte, error)
	// SaveJournal is durable when it returns.
	SaveJournal(ctx context.Context, doc []byte) error
}

// Config of a CA. TrustDomain, Keys, Journal and Emit are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Keys        keys.Store
	Journal     Journal
	// Peers are the other replicas; nil if there can be none.
	Peers Peers
	// Emit records what happens to authorities.
	Emit identity.Emit
	Log  *slog.Logger
	// Clock is time.Now if nil.
	Clock func() time.Time
	// Life of an authority; 24 hours if zero, at least MinLife.
	Life time.Duration
	// KeyType and JWTKeyType are of the keys of new X.509 and JWT authorities;
	// P-256 if zero. Those of JWT authorities choose the algorithm: ES256,
	// ES384, RS256.
	KeyType, JWTKeyType keys.Algorithm
	// Upstream signs the X.509 authorities; they sign themselves if nil.
	Upstream Upstream
	// X509SVIDLife and JWTSVIDLife are the lives of SVIDs that do not ask for
	// another; one hour and five minutes if zero. An SVID never outlives its
	// authority.
	X509SVIDLife, JWTSVIDLife time.Duration
	// Revoked is what is revoked, and a channel that is closed when more is; nothing
	// if nil. Serial numbers in it go into CRLs.
	Revoked func() (*revocation.List, <-chan struct{})
	// CRLLife is how long a CRL is good; 24 hours if zero. They are signed anew at
	// half of it.
	CRLLife time.Duration
	// JWTIssuer is the iss claim of JWT-SVIDs, for verifiers of OpenID Connect;
	// there is none if empty.
	JWTIssuer string
}

func (c *Config) complete() error {
	if c.TrustDomain.IsZero() || c.Keys == nil || c.Journal == nil || c.Emit == nil {
		return fmt.Errorf("ca: trust domain, key store, journal and emit are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Life == 0 {
		c.Life = 24 * time.Hour
	}
	if c.X509SVIDLife == 0 {
		c.X509SVIDLife = time.Hour
	}
	if c.JWTSVIDLife == 0 {
		c.JWTSVIDLife = 5 * time.Minute
	}
	if c.CRLLife == 0 {
		c.CRLLife = 24 * time.Hour
	}
	if c.Revoked == nil {
		c.Revoked = new(revocation.Set).Now
	}
	switch {
	case c.Life < MinLife || c.Life > maxLife:
		return fmt.Errorf("ca: life of an authority is %v, want %v to %v", c.Life, MinLife, maxLife)
	case c.X509SVIDLife < MinSVIDLife:
		return fmt.Errorf("ca: life of an X509-SVID is %v, want at least %v", c.X509SVIDLife, MinSVIDLife)
	case c.KeyType == keys.Ed25519, c.JWTKeyType == keys.Ed25519:
		return fmt.Errorf("ca: authorities do not have Ed25519 keys: JWT-SVIDs know no such algorithm, and few verify such certificates")
	case c.CRLLife < MinSVIDLife:
		return fmt.Errorf("ca: life of a CRL is %v, want at least %v", c.CRLLife, MinSVIDLife)
	case c.JWTSVIDLife < MinSVIDLife:
		return fmt.Errorf("ca: life of a JWT-SVID is %v, want at least %v", c.JWTSVIDLife, MinSVIDLife)
	}
	return nil
}

// CA is the authorities of one trust domain. It is safe for concurrent use.
type CA struct {
	cfg Config
	// rotating serialises changes of the authorities; mu guards what they are
	// now, which signing only reads.
	rotating sync.Mutex

	// signed counts X509-SVIDs that we encoded; distrusted ends that.
	signed     atomic.Uint64
	distrusted atomic.Bool

	crls crls

	mu      sync.RWMutex
	x509    slots
	jwt     slots
	foreign foreign
	// verdicts are those of this replica.
	verdicts verdicts
	peers    peers
	seq      uint64
	bundle   *Bundle
	changed  chan struct{}
	// turned is closed when Readiness may have become another, listed when
	// RevocationLists may have.
	turned, listed chan struct{}
}

// Open loads the authorities, and makes them if there are none or if they are
// past their time. Where there are other replicas it may return before it can
// sign: see WaitReady.
func Open(ctx context.Context, cfg Config) (*CA, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &CA{cfg: cfg, changed: make(chan struct{}), turned: make(chan struct{}), listed: make(chan struct{})}
	if err := c.load(ctx); err != nil {
		return nil, fmt.Errorf("open ca: %w", err)
	}
	if err := c.takePeers(ctx); err != nil {
		return nil, fmt.Errorf("open ca: %w", err)
	}
	if err := c.Rotate(ctx); err != nil {
		// What is there goes on signing while the upstream is away.
		if !errors.Is(err, ErrUpstream) || !c.Ready() {
			return nil, fmt.Errorf("open ca: %w", err)
		}
		c.cfg.Log.ErrorContext(ctx, "cannot rotate authorities, trying again", "error", err)
	}
	return c, nil
}

// TrustDomain is the trust domain whose names the CA signs.
func (c *CA) TrustDomain() spiffeid.TrustDomain { return c.cfg.TrustDomain }

// Now is the CA's time.
func (c *CA) Now() time.Time { return c.cfg.Clock() }

// X509SVIDLife is the life of an X509-SVID that does not ask for another.
func (c *CA) X509SVIDLife() time.Duration { return c.cfg.X509SVIDLife }

// JWTSVIDLife is the life of JWT-SVIDs that do not ask for another.
func (c *CA) JWTSVIDLife() time.Duration { return c.cfg.JWTSVIDLife }

// Bundle returns the current bundle, and a channel that is closed when there is
// another.
func (c *CA) Bundle() (*Bundle, <-chan struct{}) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bundle, c.changed
}

// Run rotates the authorities when they are due, and follows the upstream, until
// ctx ends.
func (c *CA) Run(ctx context.Context) error {
	if c.cfg.Upstream != nil {
		var following sync.WaitGroup
		following.Go(func() { c.follow(ctx) })
		defer following.Wait()
	}
	for {
		wait := c.nextRotation().Sub(c.Now())
		if err := c.Rotate(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.ErrorContext(ctx, "cannot rotate authorities, trying again", "error", err)
			wait = c.cfg.Life / 100
		} else if err == nil {
			wait = c.nextRotation().Sub(c.Now())
		}
		revoked := c.revokedChanges()
		if err := c.refreshCRLs(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.ErrorContext(ctx, "other replicas lack the newest CRLs of this one, trying again", "error", err)
			wait = min(wait, time.Second)
		} else if revoked != nil {
			wait = min(wait, max(c.crlsDue().Sub(c.Now()), c.cfg.CRLLife/20))
		}
		// Timers stand still while the machine sleeps; the wall clock does not.
		timer := time.NewTimer(max(time.Millisecond, min(wait, time.Minute)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-revoked:
			timer.Stop()
		case <-c.peersNow().changed: // nil where there are none
			timer.Stop()
			if err := c.takePeers(ctx); err != nil && ctx.Err() == nil {
				c.cfg.Log.ErrorContext(ctx, "cannot follow the other replicas, trying again", "error", err)
				pause(ctx, time.Second)
			}
		}
	}
}

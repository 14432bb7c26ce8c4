package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
)

// selfSVID is an SVID of the control plane, made in this process with a new key
// each time half of its life is over.
type selfSVID struct {
	issuer *Issuer
	id     spiffeid.ID

	mu      sync.Mutex
	svid    *x509svid.SVID
	renewAt time.Time
	// sound is the bundle by which svid was found sound.
	sound *ca.Bundle
}

// current is the SVID, a new one if it is time, and when to look again.
func (s *selfSVID) current() (*x509svid.SVID, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.issuer.now()
	// One that begins in the future was made while the clock was ahead.
	if s.svid != nil && (s.issuer.revoked(s.svid.Certificates[0], s.id) != nil || now.Before(s.svid.Certificates[0].NotBefore)) {
		s.svid = nil
	}
	bundle, _ := s.issuer.ca.Bundle()
	if s.svid != nil && now.Before(s.renewAt) && (s.sound == bundle || bundle.Sound(s.svid.Certificates)) {
		s.sound = bundle
		return s.svid, s.renewAt, nil
	}
	svid, err := s.mint()
	if err != nil {
		if s.svid == nil || !now.Before(s.svid.Certificates[0].NotAfter) {
			return nil, now, fmt.Errorf("issue own SVID %s: %w", s.id, err)
		}
		s.issuer.log.Error("cannot renew own SVID, trying again", "id", s.id.String(), "error", err)
		s.renewAt, s.sound = now.Add(s.svid.Certificates[0].NotAfter.Sub(now)/10), bundle
		return s.svid, s.renewAt, nil
	}
	s.svid, s.sound = svid, bundle // no other would be sounder
	s.renewAt = now.Add(svid.Certificates[0].NotAfter.Sub(now) / 2)
	return s.svid, s.renewAt, nil
}

func (s *selfSVID) mint() (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	notBefore, err := s.issuer.notBefore(s.id, spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	ticket, err := s.issuer.ca.PrepareX509(ca.X509Request{ID: s.id, PublicKey: key.Public(), NotBefore: notBefore})
	if err != nil {
		return nil, err
	}
	act := svidAct("issued", "x509-svid", s.id, ticket.ExpiresAt(), [2]string{"serial", ticket.Serial()})
	act.Actor = identity.IssuerID(s.issuer.cfg.TrustDomain).String()
	if err := s.issuer.record(context.Background(), act); err != nil {
		return nil, err
	}
	chain, err := s.issuer.ca.IssueX509(ticket)
	if err != nil {
		return nil, err
	}
	svid := &x509svid.SVID{ID: s.id, PrivateKey: key}
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	return svid, nil
}

// Source is an identity.Source of the control plane's own: its SVIDs are made
// in this process.
type Source struct {
	self    *selfSVID
	updated chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
}

var _ identity.Source = (*Source)(nil)

// SelfSource is the identity of the control plane under id, for its other
// listeners and clients; usually identity.ServerID. Close it.
func (i *Issuer) SelfSource(id spiffeid.ID) (*Source, error) {
	self := &selfSVID{issuer: i, id: id}
	svid, _, err := self.current()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Source{self: self, updated: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.follow(ctx, svid)
	}()
	return s, nil
}

// follow renews the SVID in time and tells of it and of new bundles.
func (s *Source) follow(ctx context.Context, told *x509svid.SVID) {
	issuer := s.self.issuer
	bundle, _ := issuer.ca.Bundle()
	for {
		svid, next, err := s.self.current()
		wait := time.Second
		if err != nil {
			issuer.log.ErrorContext(ctx, "cannot renew own SVID, trying again", "id", s.self.id.String(), "error", err)
		} else {
			// The wall clock may jump, the timer does not.
			wait = max(10*time.Millisecond, min(time.Minute, next.Sub(issuer.now())))
		}
		latest, bundleChanged := issuer.ca.Bundle()
		if latest != bundle || err == nil && svid != told {
			if err == nil {
				told = svid
			}
			bundle = latest
			select {
			case s.updated <- struct{}{}:
			default: // one is waiting already
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-bundleChanged:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// GetX509SVID implements x509svid.Source.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	svid, _, err := s.self.current()
	return svid, err
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	bundle, _ := s.self.issuer.ca.Bundle()
	return bundle.GetX509BundleForTrustDomain(td)
}

// Updated implements identity.Source.
func (s *Source) Updated() <-chan struct{} { return s.updated }

// Close ends the renewal. What was handed out stays valid for its life.
func (s *Source) Close() error {
	s.cancel()
	<-s.done
	return nil
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/internal/tracing"
)

// schedule is when the agent does what next.
type schedule struct {
	renew, sync, sign time.Time
	// told is before when the issuer does not want to be asked to sign, zero if it
	// did not say.
	told time.Time

	renewBackoff, syncBackoff, signBackoff backoff
}

// Run keeps the agent's identity and its workloads' SVIDs fresh until ctx is
// done, and then returns nil. It returns an error when the agent cannot go on
// by itself: ErrBanned, ErrNoToken, or a node that could not be attested. What
// merely fails is tried again.
func (a *Agent) Run(ctx context.Context) error {
	defer a.cache.stop()
	defer a.link.close()
	if err := a.keep.hold(); err != nil {
		return err
	}
	defer a.keep.release()
	kept, err := a.load()
	if err != nil {
		return err
	}
	if kept {
		a.log.Info("going on with the kept SVID", "spiffe_id", agentName(a.self.svid.Load().ID))
	} else if err := a.attestUntilDone(ctx); err != nil {
		if a.notKept != nil {
			err = fmt.Errorf("%w (what is kept in %s cannot be used: %w)", err, a.cfg.DataDir, a.notKept)
		}
		return ignoreDone(ctx, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { a.watch(ctx) })
	defer watching.Wait()
	defer cancel()
	return ignoreDone(ctx, a.loop(ctx))
}

func ignoreDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// loop does one thing at a time, each when it is due.
func (a *Agent) loop(ctx context.Context) error {
	s := &schedule{renew: a.renewAt()}
	for {
		if err := a.step(ctx, s); err != nil {
			return err
		}
		timer := time.NewTimer(time.Until(s.next(a.cache)))
		select {
		case <-timer.C:
		case <-a.kick:
			timer.Stop()
			// While the issuer does not answer, a kick does not hurry it.
			if s.syncBackoff.failures == 0 {
				s.sync = time.Time{}
			}
		case <-a.cache.unsigned:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// slow has nothing tried again too soon while the clocks are apart.
func (s *schedule) slow() {
	until := time.Now().Add(jitter(clockWait, 0.2))
	for _, due := range []*time.Time{&s.renew, &s.sync, &s.sign} {
		if due.Before(until) {
			*due = until
		}
	}
}

// next is when something is due.
func (s *schedule) next(c *cache) time.Time {
	next := s.renew
	if s.sync.Before(next) {
		next = s.sync
	}
	if due, ok := c.nextDue(); ok {
		// After a failure of the issuer, not of the entry, all of them wait.
		if due.Before(s.sign) {
			due = s.sign
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// step does what is due. Its errors are final.
func (a *Agent) step(ctx context.Context, s *schedule) (err error) {
	ctx, span := a.opt.Tracer.Begin(ctx, "refresh", a.causes.Take()...)
	if span.Recorded() {
		a.cache.because(tracing.CauseOf(ctx))
		defer a.cache.because(tracing.Cause{})
	}
	defer func() { span.End(err) }()
	now := time.Now()
	if !now.Before(s.renew) {
		if err := a.renew(ctx); err != nil {
			s.renew = now.Add(s.renewBackoff.after(err))
			return a.onFailure(ctx, s, fmt.Errorf("renew the agent's SVID: %w", err))
		}
		a.stats.renewals.Add(1)
		s.renewBackoff.reset()
		s.renew, s.sync = a.renewAt(), time.Time{}
	}
	if !now.Before(s.sync) {
		if err := a.sync(ctx); err != nil {
			a.stats.syncErrors.Add(1)
			s.sync = time.Now().Add(s.syncBackoff.after(err))
			return a.onFailure(ctx, s, err)
		}
		a.stats.syncs.Add(1)
		if !a.renewBy.IsZero() && a.renewBy.Before(s.renew) {
			s.renew, a.renewBy = a.renewBy, time.Time{}
		}
		s.syncBackoff.reset()
		interval := a.cfg.SyncInterval
		if a.watching.Load() {
			interval *= watchedFactor
		}
		s.sync, s.sign = time.Now().Add(jitter(interval, 0.1)), s.told
	}
	if due, ok := a.cache.nextDue(); ok && !time.Now().Before(due) && !time.Now().Before(s.sign) {
		if err := a.sign(ctx); err != nil {
			a.cache.withdraw()
			s.sign, s.told = time.Now().Add(s.signBackoff.after(err)), time.Time{}
			if _, ok := admit.RetryAfter(err); ok {
				s.told = s.sign
			}
			return a.onFailure(ctx, s, err)
		}
		s.signBackoff.reset()
		s.told = time.Time{}
	}
	if s.syncBackoff.failures == 0 {
		a.setReady()
	}
	return nil
}

func (a *Agent) setReady() {
	select {
	case <-a.ready:
	default:
		close(a.ready)
	}
}

// renewAt is when to renew the own SVID. Of one that was kept, nobody knows any
// more when it arrived; that it was issued is the nearest.
func (a *Agent) renewAt() time.Time {
	leaf := a.self.svid.Load().Certificates[0]
	if received := a.self.received.Load(); received != nil {
		return renewal(*received, leaf.NotAfter)
	}
	return renewal(leaf.NotBefore, leaf.NotAfter)
}

// renew gets the agent a new SVID, keeps it, and shows it from then on. It is
// kept first: at its first use the issuer retires the old one.
//
// Where the issuer says that the node can be attested again, that is the way: it
// shows that the node is still what it was.
func (a *Agent) renew(ctx context.Context) (err error) {
	ctx, span := tracing.Start(ctx, "renew the agent's SVID")
	defer func() { span.End(err) }()
	if a.reattest.Load() {
		p, err := a.newProof(ctx)
		if err != nil {
			return err
		}
		return a.attestOver(ctx, p, a.issuerTLS(&a.self), func(*x509bundle.Bundle) error { return nil })
	}
	key, csr, err := newKey()
	if err != nil {
		return err
	}
	var reply *agentv1.RenewAgentResponse
	// What its workloads have is renewed after this.
	stated := admit.WithLife(ctx, a.lifeLeft())
	err = a.link.call(stated, func(ctx context.Context, cc *grpc.ClientConn) (err error) {
		reply, err = agentv1.NewAgentClient(cc).RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
		return err
	})
	if err != nil {
		return err
	}
	svid, err := acceptSVID(reply.GetSvid(), key, a.self.svid.Load().ID, &a.self)
	if err != nil {
		return err
	}
	if err := a.keep.saveSVID(svid); err != nil {
		return fmt.Errorf("keep it: %w", err)
	}
	a.self.set(svid)
	a.cache.tell()
	a.link.replace(nil)
	a.log.Info("agent's SVID renewed", "expires", svid.Certificates[0].NotAfter)
	return nil
}

// onFailure decides what a failed call means. nil is to go on by the schedule,
// which starts anew where the node was attested again.
func (a *Agent) onFailure(ctx context.Context, s *schedule, cause error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// final tells that there is nothing to go on with.
	final := true
	switch denial(cause) {
	case types.PermissionDeniedDetails_AGENT_BANNED:
		return fmt.Errorf("%w (%w)", ErrBanned, cause)
	case types.PermissionDeniedDetails_AGENT_NOT_ATTESTED,
		types.PermissionDeniedDetails_AGENT_NOT_ACTIVE,
		types.PermissionDeniedDetails_AGENT_MUST_REATTEST:
	case types.PermissionDeniedDetails_AGENT_EXPIRED:
		if own := a.self.svid.Load().Certificates[0]; !a.self.expired(time.Now()) {
			a.log.Error("the issuer takes the agent's SVID for expired, which it is not by this machine's clock: check both clocks; trying again",
				append(a.clockNote(), "svid_expires", own.NotAfter, "now", time.Now().UTC(), "error", cause)...)
			s.slow()
			return nil
		}
		final = !a.isReady()
	default:
		if off := ofClocks(cause); off != nil || ofClocks(a.link.distrusted()) != nil {
			// No proof helps as long as the clocks are apart, and what there is
			// may be good by the right one.
			a.log.Error("what the issuer shows is not valid by this machine's clock: trying again", append(a.clockNote(), "error", cause)...)
			s.slow()
			return nil
		}
		expired := a.self.expired(time.Now())
		// An SVID that has expired is refused in the handshake, and an issuer
		// that began anew neither knows ours nor can prove itself by the kept
		// bundle. Only a token helps, if there is one. It may as well be
		// somebody on the network: nothing stops for that.
		if !expired && a.link.distrusted() == nil {
			a.log.Warn("the issuer does not answer as it should: trying again", append(a.clockNote(), "error", cause)...)
			return nil
		}
		final = expired && !a.isReady()
	}
	err := a.attestAgain(ctx)
	switch {
	case errors.Is(err, ErrBanned):
		return err
	case err == nil:
		*s = schedule{renew: a.renewAt()}
	case final && !passing(err):
		return fmt.Errorf("the node must be attested again (%w): %w", cause, err)
	default:
		a.log.Error("the node must be attested again; what was issued is served until it expires", append(a.clockNote(), "cause", cause, "error", err)...)
	}
	return nil
}

func (a *Agent) attestAgain(ctx context.Context) error {
	p, err := a.newProof(ctx)
	if err != nil {
		return err
	}
	err = a.attest(ctx, p)
	if denial(err) == types.PermissionDeniedDetails_AGENT_BANNED {
		return fmt.Errorf("%w (%w)", ErrBanned, err)
	}
	return err
}

func (a *Agent) isReady() bool {
	select {
	case <-a.ready:
		return true
	default:
		return false
	}
}

// attestUntilDone attests the node for the first time, as often as it takes
// where the issuer cannot be reached.
func (a *Agent) attestUntilDone(ctx context.Context) error {
	var before error
	for wait := (backoff{}); ; {
		p, err := a.newProof(ctx)
		if err != nil {
			if before != nil {
				err = fmt.Errorf("%w; the last attempt ended with: %w", err, before)
			}
			return fmt.Errorf("the node must be attested: %w", err)
		}
		if err = a.attest(ctx, p); err == nil {
			return nil
		}
		before = err
		if final := a.afterAttest(err); final != nil {
			return final
		}
		a.log.Warn("node not attested yet: trying again", "error", err)
		timer := time.NewTimer(wait.after(err))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// afterAttest returns nil if the attestation that failed may be repeated.
func (a *Agent) afterAttest(err error) error {
	var d *distrust
	switch {
	case denial(err) == types.PermissionDeniedDetails_AGENT_BANNED:
		return fmt.Errorf("%w (%w)", ErrBanned, err)
	case ofClocks(err) != nil:
		// It ends when the clocks agree, and costs no token.
	case errors.As(err, &d), !passing(err):
		return fmt.Errorf("attest the node: %w", err)
	}
	return nil
}

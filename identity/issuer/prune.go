package issuer

import (
	"context"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/skew"
)

// tokenMemory is how long a join token is remembered after its time, so that a
// late second use still raises an alarm.
const tokenMemory = 30 * 24 * time.Hour

// agentMemory is how long an agent is kept after its last SVID has expired. It may
// call nothing, but when it was this machine's clock that was wrong, it goes on
// without a new token.
const agentMemory = 24 * time.Hour

// pruneLook is how often it is looked for what expires next, at most.
const pruneLook = time.Second

// prune removes entries and agents when they expire, until ctx ends.
func (i *Issuer) prune(ctx context.Context) {
	clock := newSteady(i.now)
	for {
		_, changed := i.index.Revision()
		looked := time.Now()
		now, set := clock.now()
		if set != 0 {
			i.clockSet(ctx, set)
		}
		// The wall clock may jump, the timer does not.
		wait := time.Minute
		if next := i.index.NextExpiry(agentMemory); !next.IsZero() {
			wait = max(10*time.Millisecond, min(wait, next.Sub(now)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-changed:
			// Something may expire earlier now. The look goes over all entries, so
			// many changes are looked at together.
			timer.Reset(min(wait, pruneLook) - time.Since(looked))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		if time.Since(looked) < wait {
			continue
		}
		if now, set = clock.now(); set != 0 {
			i.clockSet(ctx, set)
		}
		if err := i.pruneBy(ctx, now); err != nil && ctx.Err() == nil {
			i.log.ErrorContext(ctx, "cannot prune the registry, trying again", "error", err)
			retry := time.NewTimer(time.Second)
			select {
			case <-ctx.Done():
			case <-retry.C:
			}
			retry.Stop()
		}
	}
}

// clockSet puts on record that the wall clock was set while the issuer ran.
func (i *Issuer) clockSet(ctx context.Context, by time.Duration) {
	direction := "ahead"
	if by < 0 {
		direction = "back"
	}
	i.log.ErrorContext(ctx, "the wall clock was set, or the machine slept: what is signed bears its time", "direction", direction, "by", skew.Round(by), "now", i.now())
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "set", Object: "clock", ObjectID: direction,
		Actor: identity.IssuerID(i.cfg.TrustDomain).String(), Details: [][2]string{{"by", skew.Round(by).String()}},
		Reason: "the wall clock and the time that passed do not agree: it was set, or the machine slept",
	}
	if err := i.record(ctx, act); err != nil && ctx.Err() == nil {
		i.log.ErrorContext(ctx, "cannot record that the clock was set", "error", err)
	}
}

// Prune removes what has expired: entries, revocations, after a while agents
// together with the entries that their join tokens' aliases became, and old join
// tokens. A banned agent stays, or its ban would end with its SVID.
func (i *Issuer) Prune(ctx context.Context) error { return i.pruneBy(ctx, i.now()) }

func (i *Issuer) pruneBy(ctx context.Context, now time.Time) error {
	self := identity.IssuerID(i.cfg.TrustDomain).String()
	return i.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		for _, e := range i.index.Entries() {
			if !e.Expired(now) {
				continue
			}
			if _, err := tx.DeleteEntry(e.ID); err != nil {
				return err
			}
			act := entryAct("expired", e)
			act.Actor = self
			if err := record(act); err != nil {
				return err
			}
		}
		for _, a := range i.index.Agents() {
			if a.Banned || now.Before(a.LastExpiry().Add(agentMemory)) {
				continue
			}
			aliases, err := tx.DeleteAgent(a.ID)
			if err != nil {
				return err
			}
			act := agentAct("expired", a.ID)
			act.Actor = self
			if err := record(act); err != nil {
				return err
			}
			for _, e := range aliases {
				act := entryAct("deleted", e)
				act.Actor = self
				if err := record(act); err != nil {
					return err
				}
			}
		}
		if _, err := tx.PruneRevocations(now); err != nil {
			return err
		}
		if err := tx.PruneFacts(now); err != nil {
			return err
		}
		_, err := tx.PruneJoinTokens(now.Add(-tokenMemory))
		return err
	})
}

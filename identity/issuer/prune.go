package issuer

import (
	"context"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// tokenMemory is how long a join token is remembered after its time, so that a
// late second use still raises an alarm.
const tokenMemory = 30 * 24 * time.Hour

// prune removes entries and agents when they expire, until ctx ends.
func (i *Issuer) prune(ctx context.Context) {
	for {
		_, changed := i.index.Revision()
		// The wall clock may jump, the timer does not.
		wait := time.Minute
		if next := i.index.NextExpiry(); !next.IsZero() {
			wait = max(10*time.Millisecond, min(wait, next.Sub(i.now())))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changed:
			timer.Stop()
			continue
		case <-timer.C:
		}
		if err := i.Prune(ctx); err != nil && ctx.Err() == nil {
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

// Prune removes what has expired: entries, agents together with the entries
// that their join tokens' aliases became, revocations, and old join tokens. A banned agent
// stays, or its ban would end with its SVID.
func (i *Issuer) Prune(ctx context.Context) error {
	now := i.now()
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
			if a.Banned || now.Before(a.LastExpiry()) {
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
		_, err := tx.PruneJoinTokens(now.Add(-tokenMemory))
		return err
	})
}

package issuer

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/tracing"
)

// recorder puts an act on record with the transaction that it belongs to.
type recorder func(identity.Act) error

// change is what one caller changes in the registry, and what became of it.
type change struct {
	ctx  context.Context
	fn   func(*sqlstore.Tx, recorder) error
	done bool
	err  error
}

// update runs fn in a transaction of the registry. What fn recorded is emitted
// together once fn is done, before the commit; if either then fails, the record
// says so.
func (i *Issuer) update(ctx context.Context, fn func(*sqlstore.Tx, recorder) error) error {
	return i.updateAs(ctx, i.turnOf(ctx), fn)
}

// updateAs is update at a turn.
func (i *Issuer) updateAs(ctx context.Context, t turn, fn func(*sqlstore.Tx, recorder) error) (err error) {
	ctx, span := tracing.Start(ctx, "registry transaction")
	defer func() { span.End(err) }()
	leave, err := i.enterWriting(ctx, t, writesTogether)
	if err != nil {
		return err
	}
	defer leave()
	c := &change{ctx: ctx, fn: fn}
	i.commit(ctx, c)
	return c.err
}

// together is changes that wait to be done in one transaction.
type together struct {
	// one is full while somebody does what waited, for all of them.
	one chan struct{}

	mu      sync.Mutex
	waiting []*change
}

// updateTogether is updateAs for small changes that come in great number: those that
// wait at the same time are one transaction, and wait for the disk once. It may run fn
// twice.
func (i *Issuer) updateTogether(ctx context.Context, t turn, fn func(*sqlstore.Tx, recorder) error) (err error) {
	ctx, span := tracing.Start(ctx, "registry transaction")
	defer func() { span.End(err) }()
	leave, err := i.enterWriting(ctx, t, 1)
	if err != nil {
		return err
	}
	defer leave()
	c := &change{ctx: ctx, fn: fn}
	w := &i.together
	w.mu.Lock()
	w.waiting = append(w.waiting, c)
	w.mu.Unlock()
	w.one <- struct{}{}
	defer func() { <-w.one }()
	if !c.done { // nobody before has done it
		w.mu.Lock()
		all := w.waiting
		w.waiting = nil
		w.mu.Unlock()
		i.commit(context.WithoutCancel(ctx), all...)
	}
	return c.err
}

// commit does changes in one transaction. Where one of them is refused, each is done
// by itself, so that it is nobody else's concern. An error of what they have in common
// is everybody's.
func (i *Issuer) commit(ctx context.Context, all ...*change) {
	all = slices.DeleteFunc(all, func(c *change) bool {
		c.done, c.err = true, c.ctx.Err()
		return c.err != nil // it has gone
	})
	refused, err := i.tryCommit(ctx, all)
	for _, c := range all {
		if c.err = err; refused && len(all) > 1 {
			_, c.err = i.tryCommit(ctx, []*change{c})
		}
	}
}

// tryCommit is commit, for all or nothing. refused tells that the error is of a change.
func (i *Issuer) tryCommit(ctx context.Context, all []*change) (refused bool, err error) {
	if len(all) == 0 {
		return false, nil
	}
	var recorded []identity.Act
	err = i.store.Update(ctx, func(tx *sqlstore.Tx) error {
		var acts []identity.Act
		for _, c := range all {
			err := c.fn(tx, func(act identity.Act) error {
				if act.Actor == "" {
					act.Actor = callerOf(c.ctx).Actor()
				}
				acts = append(acts, act)
				return nil
			})
			if err != nil {
				refused = true
				return err
			}
		}
		recorded = acts // some of them, even when this fails
		return i.recordAll(ctx, acts)
	})
	if err == nil {
		return false, nil
	}
	reason := "rolled back"
	var unknown *sqlstore.CommitError
	if errors.As(err, &unknown) {
		reason = "commit failed"
	}
	for n := range recorded {
		recorded[n].Failed, recorded[n].Reason = true, reason
	}
	_ = i.recordAll(context.WithoutCancel(ctx), recorded) // logged; the call fails anyway
	return refused, err
}

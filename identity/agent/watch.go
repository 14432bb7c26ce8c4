package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/tracing"
)

const (
	// unwatchedRetry is when to ask an issuer again that has no EntryWatch: it
	// may have been upgraded.
	unwatchedRetry = 5 * time.Minute
	// watchedFactor is how much more rarely entries are polled while changes
	// are pushed. It finds connections that are dead without having ended.
	watchedFactor = 12
)

// watch asks for a sync whenever the issuer says that something changed, until
// ctx is done.
func (a *Agent) watch(ctx context.Context) {
	var wait backoff
	for ctx.Err() == nil {
		err := a.watchOnce(ctx, wait.reset)
		a.watching.Store(false)
		delay, unserved := wait.next(), status.Code(err) == codes.Unimplemented
		switch {
		case ctx.Err() != nil:
			return
		case unserved:
			a.log.Debug("the issuer does not push changes: polling", "interval", a.cfg.SyncInterval)
			delay = unwatchedRetry
		default:
			a.log.Debug("watch on entries ended", "error", err)
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if !unserved {
			// Without the watch it is time to poll again, and the reason may be
			// that this agent is not wanted any more. Not at once: an issuer that
			// stops ends the watches of all agents together.
			a.syncNow()
		}
	}
}

// watchOnce follows one stream. The first message comes at once, and asks for a
// sync like every other: what changed between two streams is in it.
func (a *Agent) watchOnce(ctx context.Context, works func()) error {
	s, err := a.link.take()
	if err != nil {
		return err
	}
	defer a.link.release(s)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The stream belongs to its connection: when that is replaced, by a new
	// SVID, the stream must move on.
	defer context.AfterFunc(s.ctx, cancel)()
	stream, err := watchv1.NewEntryWatchClient(s).Watch(ctx, &watchv1.WatchRequest{Revocations: true, Crls: a.cfg.SDS.CRL})
	if err != nil {
		return err
	}
	for {
		change, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch entries: %w", err)
		}
		works()
		a.watching.Store(true)
		a.hearClock(change.Revocations)
		resync := a.tellRevoked(change.Revocations)
		// Before the bundle that they belong to.
		a.takeCRLs(change.Crls)
		if !change.Unchanged {
			a.log.Debug("change announced", "revision", change.Revision, "bundle", change.Bundle)
		}
		if resync || !change.Unchanged {
			if a.opt.Tracer != nil {
				a.causes.Add(tracing.ParseTraceparent(change.Traceparent))
			}
			a.syncNow()
		}
	}
}

package issuer

import (
	"context"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/tracing"
)

// heartbeat is how often those who follow revocations hear that there are none
// that they lack.
const heartbeat = 10 * time.Second

// watchService is writ.identity.watch.v1.EntryWatch.
type watchService struct {
	*Issuer
	watchv1.UnimplementedEntryWatchServer
}

// watching is one stream of EntryWatch.
type watching struct {
	*watchService
	stream      watchv1.EntryWatch_WatchServer
	revocations bool
	crls        bool
	// What the agent was told: the sequence of the bundle, the highest number of
	// the revocations, and the CRLs.
	bundle, number uint64
	listed         *ca.RevocationLists
	lists          *ca.RevocationLists // there are now; nil for none
}

// Watch implements watchv1.EntryWatchServer. The stream ends, with the reason,
// when the agent is banned or evicted and when its SVID expires, is revoked or
// is replaced by a newer one.
func (s *watchService) Watch(req *watchv1.WatchRequest, stream watchv1.EntryWatch_WatchServer) error {
	ctx := stream.Context()
	caller := callerOf(ctx)
	// Begin listening before the first look, so that no change falls between.
	watch := s.index.Watch(caller.id)
	defer watch.Close()
	expired := time.NewTimer(caller.expires.Sub(s.now()))
	defer expired.Stop()
	w := watching{watchService: s, stream: stream, revocations: req.GetRevocations(), crls: req.GetCrls()}
	var beat <-chan time.Time
	if w.revocations {
		ticker := time.NewTicker(heartbeat)
		defer ticker.Stop()
		beat = ticker.C
	}
	// What is known of the revocations goes first: it is what is waited for.
	for first, changed := true, true; ; first = false {
		list, revoked := s.Revocations().Now()
		bundle, bundleChanged := s.ca.Bundle()
		var listed <-chan struct{}
		if w.crls {
			listed = w.ready(ctx)
		}
		if err := s.checkAgent(ctx, caller); err != nil {
			return err
		}
		if err := w.tell(first, changed, bundle, list); err != nil {
			return err
		}
		select {
		case <-watch.C():
			changed = true
		case <-bundleChanged:
			changed = true
		case <-revoked:
			changed = false
		case <-listed:
			changed = false
		case <-beat:
			changed = false
		case <-expired.C:
			return deny(types.PermissionDeniedDetails_AGENT_EXPIRED, "the agent's SVID has expired")
		case <-s.closing:
			return status.Error(codes.Unavailable, "the issuer is stopping")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// tell sends what the agent does not know yet; to those who follow revocations,
// always at least that nothing is new.
func (w *watching) tell(first, changed bool, bundle *ca.Bundle, list *revocation.List) (err error) {
	if !w.revocations && !changed {
		return nil
	}
	traceparent := ""
	if changed || list.Number() > w.number { // and no heartbeat
		ctx, span := w.cfg.Tracer.Begin(w.stream.Context(), "tell the agent of a change")
		defer func() { span.End(err) }()
		if span.Recorded() {
			span.String(tracing.Caller, callerOf(ctx).Actor())
			traceparent = tracing.CauseOf(ctx).Traceparent()
		}
	}
	revision, _ := w.index.Revision()
	// Both numbers only grow, and both survive a restart; so does the sum.
	change := &watchv1.Change{Revision: revision + bundle.Sequence, Bundle: !first && bundle.Sequence != w.bundle, Unchanged: !changed, Traceparent: traceparent}
	w.bundle = bundle.Sequence
	if !w.revocations {
		return w.stream.Send(change)
	}
	messages := newCRLs(w.listed, w.lists)
	w.listed = w.lists
	for n, crls := range messages {
		if n == len(messages)-1 {
			change.Crls = crls
		} else if err := w.stream.Send(&watchv1.Change{Revision: change.Revision, Unchanged: true, Crls: crls}); err != nil {
			return err
		}
	}
	for n, update := range w.updates(first, list) {
		if n > 0 {
			change = &watchv1.Change{Revision: change.Revision, Unchanged: true, Traceparent: traceparent}
		}
		change.Revocations = update
		if err := w.stream.Send(change); err != nil {
			return err
		}
	}
	w.number = list.Number()
	return nil
}

// ready looks which CRLs there are, those of a bundle that is about to be told of
// among them, and returns a channel that is closed when there may be others.
func (w *watching) ready(ctx context.Context) <-chan struct{} {
	lists, changed, err := w.ca.RevocationLists()
	if err != nil {
		// The agent goes on with those it has; the next heartbeat tries again.
		w.log.ErrorContext(ctx, "agents get no new CRLs", "error", err)
		return changed
	}
	w.lists = lists
	return changed
}

// updates are the revocations that the agent lacks. At the beginning that is all
// of them: numbers say nothing about a list that another issuer, or this one
// before it was restored from a backup, had made.
func (w *watching) updates(first bool, list *revocation.List) []*revocationv1.Update {
	news := list.All()
	if !first {
		news = list.Since(w.number)
	}
	return revocation.Updates(news, list.Number(), w.now())
}

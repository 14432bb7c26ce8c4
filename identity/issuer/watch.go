package issuer

import (
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/watchv1"
)

// watchService is writ.identity.watch.v1.EntryWatch.
type watchService struct {
	*Issuer
	watchv1.UnimplementedEntryWatchServer
}

// Watch implements watchv1.EntryWatchServer. The stream ends, with the reason,
// when the agent is banned or evicted and when its SVID expires or is replaced
// by a newer one.
func (s *watchService) Watch(_ *watchv1.WatchRequest, stream watchv1.EntryWatch_WatchServer) error {
	ctx := stream.Context()
	caller := callerOf(ctx)
	// Begin listening before the first look, so that no change falls between.
	watch := s.index.Watch(caller.id)
	defer watch.Close()
	expired := time.NewTimer(caller.expires.Sub(s.now()))
	defer expired.Stop()
	var known uint64
	for first := true; ; first = false {
		bundle, bundleChanged := s.ca.Bundle()
		revision, _ := s.index.Revision()
		if err := s.checkAgent(ctx, caller); err != nil {
			return err
		}
		// Both numbers only grow, and both survive a restart; so does the sum.
		change := &watchv1.Change{Revision: revision + bundle.Sequence, Bundle: !first && bundle.Sequence != known}
		known = bundle.Sequence
		if err := stream.Send(change); err != nil {
			return err
		}
		select {
		case <-watch.C():
		case <-bundleChanged:
		case <-expired.C:
			return deny(types.PermissionDeniedDetails_AGENT_EXPIRED, "the agent's SVID has expired")
		case <-s.closing:
			return status.Error(codes.Unavailable, "the issuer is stopping")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

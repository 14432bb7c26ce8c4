package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/revocation"
)

// revocations says which SVIDs are revoked.
type revocations interface {
	Check(leaf *x509.Certificate, id spiffeid.ID) error
	// Changed is closed when Check may say otherwise than now.
	Changed() <-chan struct{}
}

// issuedRevocations are those of the issuer in this process.
type issuedRevocations struct{ issuer *issuer.Issuer }

func (r issuedRevocations) Check(leaf *x509.Certificate, id spiffeid.ID) error {
	list, _ := r.issuer.Revocations().Now()
	if found := list.X509(leaf, id); found != nil {
		return fmt.Errorf("the X509-SVID of %s is revoked: %s", id, found)
	}
	return nil
}

func (r issuedRevocations) Changed() <-chan struct{} {
	_, changed := r.issuer.Revocations().Now()
	return changed
}

// followRevocations takes them from the agent that gives this control plane its
// name, where the issuer is somebody else.
func (w *writd) followRevocations(ctx context.Context) error {
	follower, err := revocation.Follow(revocation.FollowConfig{Address: w.cfg.WorkloadAPI, Log: w.log})
	if err != nil {
		return err
	}
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	done.Go(func() { follower.Run(following) })
	w.stopFollowing = func() { stop(); done.Wait() }
	w.revoked = follower
	return nil
}

// checkRevoked refuses the peer of a call whose SVID is revoked.
func (w *writd) checkRevoked(ctx context.Context) error {
	leaf, err := peerLeaf(ctx)
	if err != nil {
		return err
	}
	id, err := peerID(ctx)
	if err != nil {
		return err
	}
	if err := w.revoked.Check(leaf, id); err != nil {
		w.log.WarnContext(ctx, "call refused", "reason", err)
		return status.Error(codes.PermissionDenied, "the SVID is revoked")
	}
	return nil
}

func (w *writd) notRevoked(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := w.checkRevoked(ctx); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// endWhenRevoked ends a stream, and its connection, when the SVID that opened it
// is revoked: the rightful owner connects again with its new one.
func (w *writd) endWhenRevoked(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	// Before the first look, so that no change falls between.
	changed := w.revoked.Changed()
	if err := w.checkRevoked(stream.Context()); err != nil {
		hangUp(stream.Context())
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			changed = w.revoked.Changed()
			if err := w.checkRevoked(ctx); err != nil {
				cancel(err)
				return
			}
		}
	})
	defer watching.Wait()
	defer cancel(nil)
	err := handler(srv, &boundedStream{ServerStream: stream, ctx: ctx})
	if cause := context.Cause(ctx); status.Code(cause) == codes.PermissionDenied {
		hangUp(ctx)
		return cause
	}
	return err
}

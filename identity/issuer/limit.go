package issuer

import (
	"context"
	"errors"
	"net/netip"

	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/limit"
)

// waitToAttest returns when the caller's address may attempt an attestation.
func (i *Issuer) waitToAttest(ctx context.Context) error {
	return limited(i.attesting.Wait(ctx, prefixOf(callerOf(ctx).addr), 1), "too many attestation attempts from this address, try again later")
}

// prefixOf is what stands for whoever has an address; the zero prefix for none.
func prefixOf(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64 // whoever has one address there has the whole /64
	}
	prefix, _ := addr.WithZone("").Prefix(bits)
	return prefix
}

// waitToSign returns when n SVIDs may be signed for the agent that calls. Each is
// an act on record, so that without a limit one workload could fill the record.
func (i *Issuer) waitToSign(ctx context.Context, n int) error {
	if i.signing == nil {
		return nil
	}
	return limited(i.signing.Wait(ctx, callerOf(ctx).id, n), "too many SVIDs for this agent, try again later")
}

func limited(err error, message string) error {
	var exceeded *limit.ExceededError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exceeded):
		return admit.Refuse(message, exceeded.After)
	}
	return status.FromContextError(err).Err()
}

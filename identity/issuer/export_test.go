package issuer

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/templatev1"
)

// Claimed checks a claim of an agent.
func (i *Issuer) Claimed(ctx context.Context, agent spiffeid.ID, c *templatev1.Claim) (spiffeid.ID, error) {
	_, in, err := i.claimed(withCaller(ctx, Caller{kind: svid, id: agent}), c)
	if err != nil {
		return spiffeid.ID{}, err
	}
	return in.ID, nil
}

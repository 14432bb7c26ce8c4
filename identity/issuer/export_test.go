package issuer

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

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

// RegisterAdminStream puts on a server, by the way that all services take, a method
// of administrators that streams. There is none so far.
func (i *Issuer) RegisterAdminStream(s grpc.ServiceRegistrar, caller CallerFunc, service, name string, handler grpc.StreamHandler) {
	i.rights["/"+service+"/"+name] = admin
	i.register(s, caller, &grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{
		{StreamName: name, Handler: handler, ServerStreams: true, ClientStreams: true},
	}}, i)
}

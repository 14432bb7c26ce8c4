package workload

import (
	"context"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// FetchX509SVID implements the Workload API.
func (s *Server) FetchX509SVID(_ *workloadpb.X509SVIDRequest, stream grpc.ServerStreamingServer[workloadpb.X509SVIDResponse]) error {
	return follow(s, stream, s.Caller, func(g Grant) (*workloadpb.X509SVIDResponse, error) {
		resp := &workloadpb.X509SVIDResponse{FederatedBundles: map[string][]byte{}}
		for _, id := range g.Identities {
			if id.Chain == nil {
				continue
			}
			resp.Svids = append(resp.Svids, &workloadpb.X509SVID{
				SpiffeId:    id.ID.String(),
				X509Svid:    id.Chain,
				X509SvidKey: id.Key,
				Bundle:      g.Bundle.x509,
				Hint:        id.Hint,
			})
		}
		if len(resp.Svids) == 0 {
			return nil, status.Error(codes.Unavailable, "no valid X509-SVID at the moment: the issuer has not signed one")
		}
		for _, b := range g.Federated {
			if len(b.x509) > 0 {
				resp.FederatedBundles[b.trustDomain.IDString()] = b.x509
			}
		}
		return resp, nil
	})
}

// FetchX509Bundles implements the Workload API.
func (s *Server) FetchX509Bundles(_ *workloadpb.X509BundlesRequest, stream grpc.ServerStreamingServer[workloadpb.X509BundlesResponse]) error {
	return follow(s, stream, s.keyless, func(g Grant) (*workloadpb.X509BundlesResponse, error) {
		resp := &workloadpb.X509BundlesResponse{Bundles: map[string][]byte{g.Bundle.trustDomain.IDString(): g.Bundle.x509}}
		for _, b := range g.Federated {
			if len(b.x509) > 0 {
				resp.Bundles[b.trustDomain.IDString()] = b.x509
			}
		}
		return resp, nil
	})
}

// follow sends what make makes of the caller's grant, at once and then whenever
// it has become another. Each message is the whole state. A caller that loses
// its identity is told so, and the stream ends.
func follow[M any, P interface {
	*M
	proto.Message
}](s *Server, stream grpc.ServerStreamingServer[M], begin func(context.Context) (*Caller, error), make func(Grant) (P, error)) (err error) {
	ctx, answer := s.Answer(stream.Context())
	defer func() { answer.End(err) }()
	caller, err := begin(ctx)
	if err != nil {
		return err
	}
	pushed := false
	for last := P(nil); ; {
		g, changed, err := caller.Grant(ctx)
		var msg P
		if err == nil {
			msg, err = make(g)
		}
		if err != nil || last == nil || !proto.Equal(last, msg) {
			if pushed {
				answer = s.Pushed(ctx, g)
			}
			if err == nil {
				err = caller.Alive()
			}
			if err == nil {
				err = stream.Send(msg)
			}
			if err != nil {
				return err
			}
			if last == nil {
				named(answer, g)
			}
			answer.End(nil)
			ctx, last = stream.Context(), msg
		}
		pushed = false
		select {
		case <-changed:
			pushed = true
		case <-caller.Due():
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.stopping:
			return errStopping
		}
	}
}

package workload

import (
	"context"
	"slices"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/internal/peercred"
)

// FetchX509SVID implements the Workload API.
func (s *Server) FetchX509SVID(_ *workloadpb.X509SVIDRequest, stream grpc.ServerStreamingServer[workloadpb.X509SVIDResponse]) error {
	return follow(s, stream, func(g Grant) (*workloadpb.X509SVIDResponse, error) {
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
	return follow(s, stream, func(g Grant) (*workloadpb.X509BundlesResponse, error) {
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
}](s *Server, stream grpc.ServerStreamingServer[M], make func(Grant) (P, error)) error {
	ctx := stream.Context()
	// What is asked for is read first: then the selectors are no older than it.
	before, _, _ := s.c.Source.Lookup(nil)
	p, selectors, err := s.attest(ctx)
	if err != nil {
		return err
	}
	for asked, last := before.Asked, P(nil); ; {
		g, changed, err := s.grant(ctx, p, selectors)
		if g.Asked > asked {
			asked = g.Asked
			if selectors, err = s.attestAgain(ctx, selectors); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		msg, err := make(g)
		if err != nil {
			return err
		}
		if last == nil || !proto.Equal(last, msg) {
			if err := p.Alive(); err != nil {
				return status.Error(codes.PermissionDenied, err.Error())
			}
			if err := stream.Send(msg); err != nil {
				return err
			}
			last = msg
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the agent is stopping")
		}
	}
}

// attest finds out who calls.
func (s *Server) attest(ctx context.Context) (peercred.Peer, []string, error) {
	p, ok := peercred.FromContext(ctx)
	if !ok {
		return peercred.Peer{}, nil, status.Error(codes.Internal, "the caller is not known")
	}
	selectors, err := s.c.Attest(ctx, p)
	if err != nil {
		s.c.Log.WarnContext(ctx, "workload not attested", "pid", p.PID, "uid", p.UID, "error", err)
		return peercred.Peer{}, nil, status.Error(codes.PermissionDenied, "the caller could not be attested")
	}
	return p, selectors, nil
}

// attestAgain finds out more about a caller. What was found before must still be
// there: a process whose file was replaced, or that runs another, is for this
// stream what it was, and never a mixture of the two.
func (s *Server) attestAgain(ctx context.Context, before []string) ([]string, error) {
	p, now, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	for _, old := range before {
		if !slices.Contains(now, old) {
			s.c.Log.InfoContext(ctx, "workload is not what it was when it called; it keeps what it was given", "pid", p.PID, "uid", p.UID, "lost", old)
			return before, nil
		}
	}
	return now, nil
}

// grant returns what the caller may have, which is at least one identity. With
// an error it returns what is asked for, all the same.
func (s *Server) grant(ctx context.Context, p peercred.Peer, selectors []string) (Grant, <-chan struct{}, error) {
	g, changed, err := s.c.Source.Lookup(selectors)
	switch {
	case err != nil:
		return Grant{}, nil, status.Errorf(codes.Unavailable, "not ready: %v", err)
	case len(g.Identities) == 0:
		s.c.Log.InfoContext(ctx, "workload without identity", "pid", p.PID, "uid", p.UID, "selectors", selectors)
		return Grant{Asked: g.Asked}, nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return g, changed, nil
}

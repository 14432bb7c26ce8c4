package server

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
)

type distributionService struct {
	policyv1.UnimplementedDistributionServer
	*Server
}

type watchStream = grpc.BidiStreamingServer[policyv1.WatchRequest, policyv1.Slice]

// Watch implements policyv1.Distribution. The slice is that of the peer's
// verified SPIFFE ID, whatever the peer says of itself.
func (s *distributionService) Watch(stream watchStream) error {
	id, err := s.cfg.PeerID(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, "no SPIFFE ID")
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Report == nil {
		return status.Error(codes.InvalidArgument, "report: the first message says what runs")
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return status.Error(codes.Unavailable, "shutting down")
	}
	s.streams.Add(2) // This call and the one that receives.
	s.mu.Unlock()
	defer s.streams.Done()
	peer := s.peers.connect(id, followerHash(id, instanceOf(stream.Context())), first.Report, s.cfg.Clock())
	if peer == nil {
		s.streams.Done() // Nothing receives.
		return status.Errorf(codes.ResourceExhausted, "%s has %d streams already", id, maxConnectedPerID)
	}
	defer func() { s.peers.disconnect(peer, s.cfg.Clock()) }()
	s.settle(stream.Context(), peer)
	received := make(chan error, 1)
	go func() {
		defer s.streams.Done()
		received <- s.receive(stream, peer)
	}()
	return s.send(stream, peer, first.WantSources, received)
}

// receive keeps what the peer reports until the stream ends. When Watch
// returns, its context ends and so does Recv.
func (s *distributionService) receive(stream watchStream, peer *peer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if req.Report == nil {
			return status.Error(codes.InvalidArgument, "report: missing")
		}
		if refused := s.peers.report(peer, req.Report, s.cfg.Clock()); refused != "" {
			s.cfg.Log.Warn("policy slice refused", "peer", peer.id.String(), "reason", refused)
		}
		if revision, reason := s.judge(peer); reason != "" {
			s.haltFor(context.WithoutCancel(stream.Context()), revision, reason)
		}
	}
}

// send gives the slice at once and at each activation, and between them a
// heartbeat: the revision in force without a bundle.
func (s *distributionService) send(stream watchStream, p *peer, sources bool, received <-chan error) error {
	heartbeat := time.NewTicker(s.cfg.Heartbeat)
	defer heartbeat.Stop()
	var sent policy.Revision
	for {
		a, changed := s.offered(p)
		if msg := s.message(a, p, sources, &sent); msg != nil {
			if err := stream.Send(msg); err != nil {
				return err
			}
		}
		select {
		case <-changed:
			continue
		case <-heartbeat.C:
		case err := <-received:
			return err
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		case <-s.done:
			return status.Error(codes.Unavailable, "shutting down")
		}
		beat := &policyv1.Slice{}
		if a != nil {
			beat.Revision = revisionProto(a.info.Revision)
		}
		if err := stream.Send(beat); err != nil {
			return err
		}
	}
}

// message is the slice of a if it has not been sent, or nil.
func (s *distributionService) message(a *active, p *peer, sources bool, sent *policy.Revision) *policyv1.Slice {
	if a == nil || a.info.Revision == *sent {
		return nil
	}
	*sent = a.info.Revision
	s.peers.offer(p, a.info.Revision)
	seal := a.slice
	if sources {
		seal = a.sources
	}
	sealed, err := seal(p.id, s.cfg.DecisionKey)
	if err != nil {
		// The peer keeps what it has, and status shows that it is behind.
		s.cfg.Log.Error("policy slice cannot be made", "peer", p.id.String(), "revision", a.info.Revision.String(), "error", err)
		return nil
	}
	return &policyv1.Slice{Revision: revisionProto(a.info.Revision), Bundle: sealed}
}

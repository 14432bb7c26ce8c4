package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/policy/server"
)

// listenRemoteAdmin serves administration over the network: what the admin
// socket serves, by mTLS, to those whom the admin policy allows it, call by
// call.
func (w *writd) listenRemoteAdmin() (*listener, error) {
	if w.cfg.AdminListen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", w.cfg.AdminListen)
	if err != nil {
		return nil, fmt.Errorf("admin listener: %w", err)
	}
	s := w.newPeerServer(
		grpc.MaxRecvMsgSize(server.MaxMessageBytes),
		grpc.MaxConcurrentStreams(64),
		grpc.ChainUnaryInterceptor(w.onlyAllowed),
		grpc.ChainStreamInterceptor(w.onlyAllowedStreams),
	)
	w.registerAdmin(s, issuer.RemoteCaller)
	return grpcListener("remote admin", s, l), nil
}

// allowed asks the admin policy, and marks the context of a call that it allows.
func (w *writd) allowed(ctx context.Context, method string, req any) (context.Context, error) {
	leaf, err := peerLeaf(ctx)
	if err != nil {
		return nil, err
	}
	if !time.Now().Before(leaf.NotAfter) {
		return nil, status.Error(codes.Unauthenticated, "the SVID has expired: connect again with a new one")
	}
	id, err := peerID(ctx)
	if err != nil {
		return nil, err
	}
	if err := w.adminPolicy.allow(ctx, id, method, req); err != nil {
		return nil, err
	}
	return issuer.AllowRemote(ctx, id), nil
}

func (w *writd) onlyAllowed(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := w.allowed(ctx, info.FullMethod, req)
	if err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (w *writd) onlyAllowedStreams(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := w.allowed(stream.Context(), info.FullMethod, nil)
	if err != nil {
		return err
	}
	return handler(srv, &boundedStream{ServerStream: stream, ctx: ctx})
}

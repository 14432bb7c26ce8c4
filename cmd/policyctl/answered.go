package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// answered is an Unavailable that a server sent. gRPC says the same of a server that
// it does not reach.
type answered struct{ error }

// GRPCStatus keeps the status.
func (a answered) GRPCStatus() *status.Status { return status.Convert(a.error) }

// noteAnswered tells the one from the other: a refusal comes with headers of its own. Of
// a stream that ends after messages nothing is said, since its connection may have been
// lost as well.
func noteAnswered() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			var header, trailer metadata.MD
			err := invoke(ctx, method, req, reply, conn, append(opts, grpc.Header(&header), grpc.Trailer(&trailer))...)
			return sent(err, trailer)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, conn, method, opts...)
			if err != nil {
				return nil, err
			}
			return &notedStream{s}, nil
		}),
	}
}

func sent(err error, trailer metadata.MD) error {
	if status.Code(err) == codes.Unavailable && len(trailer) > 0 {
		return answered{err}
	}
	return err
}

type notedStream struct{ grpc.ClientStream }

// RecvMsg implements grpc.ClientStream.
func (s *notedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil {
		err = sent(err, s.Trailer())
	}
	return err
}

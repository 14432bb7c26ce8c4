package admit

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// lifeHeader is metadata by which a caller says how many seconds are left of what
// it wants replaced, or that it wants it for the first time.
const lifeHeader = "writ-life"

const firstTime = "none"

// WithLife is a context for calls that replace what expires in life.
func WithLife(ctx context.Context, life time.Duration) context.Context {
	return metadata.AppendToOutgoingContext(ctx, lifeHeader, strconv.FormatInt(int64(life/time.Second), 10))
}

// ForTheFirstTime is a context for calls that replace nothing.
func ForTheFirstTime(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, lifeHeader, firstTime)
}

// Stated is what the caller of ctx said of its request. Who says nothing, as a stock
// agent, most likely renews when half of a life is left, which is what unstated is.
func Stated(ctx context.Context, unstated time.Duration) (Class, time.Duration) {
	if values := metadata.ValueFromIncomingContext(ctx, lifeHeader); len(values) > 0 {
		return parse(values[0])
	}
	return Renewal, unstated
}

func parse(stated string) (Class, time.Duration) {
	seconds, err := strconv.ParseInt(stated, 10, 32)
	if err != nil { // firstTime, or what nobody knows
		return First, 0
	}
	// Half a second is the middle of what the number stands for.
	return Renewal, time.Duration(seconds)*time.Second + time.Second/2
}

// protocolPrefix begins what a client says in the first message of a handshake, when
// nothing else can be said: as the name of an application protocol (RFC 7301), which
// servers that do not know it pass over.
const protocolPrefix = "writ-life-"

// Protocol is the application protocol of a client for whom the connection is to
// renew what expires in life.
func Protocol(life time.Duration) string {
	return protocolPrefix + strconv.FormatInt(int64(life/time.Second), 10)
}

// FirstProtocol is that of a client that has nothing yet.
const FirstProtocol = protocolPrefix + firstTime

// StatedBy is Stated of the application protocols of a client.
func StatedBy(protocols []string, unstated time.Duration) (Class, time.Duration) {
	for _, p := range protocols {
		if stated, ok := strings.CutPrefix(p, protocolPrefix); ok {
			return parse(stated)
		}
	}
	return Renewal, unstated
}

// Status is an error of Enter for the wire.
func Status(err error) error {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		return status.FromContextError(err).Err()
	}
	return Refuse("the issuer is overloaded: come again later", refused.After)
}

// Refuse is an error for the wire that has the caller come again: ResourceExhausted,
// so that it keeps its connection, with a RetryInfo.
func Refuse(message string, after time.Duration) error {
	s := status.New(codes.ResourceExhausted, message)
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); err == nil {
		s = detailed
	}
	return s.Err()
}

// RetryAfter is when a refused call should be made again, false if the error does
// not say.
func RetryAfter(err error) (time.Duration, bool) {
	s, ok := status.FromError(err)
	if !ok {
		return 0, false
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().IsValid() && info.GetRetryDelay().AsDuration() > 0 {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

package otlp

import (
	"context"
	"slices"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
)

// handlers carry traces over gRPC, as W3C Trace Context.
func handlers(provider trace.TracerProvider, opt Options) (server, client stats.Handler) {
	options := []otelgrpc.Option{
		otelgrpc.WithTracerProvider(provider),
		otelgrpc.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return !opt.untraced(info.FullMethodName) }),
	}
	strangers := otelgrpc.WithPublicEndpointFn(func(ctx context.Context, info *stats.RPCTagInfo) bool {
		return stranger(ctx) && !slices.Contains(opt.Strangers, info.FullMethodName)
	})
	return otelgrpc.NewServerHandler(append(options, strangers)...), otelgrpc.NewClientHandler(options...)
}

// maxMethod is longer than any method that there is. Whoever calls one that there
// is not chooses its name, and is not to fill the collector with it.
const maxMethod = 128

func (o *Options) untraced(method string) bool {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._", r)
	}
	return len(method) > maxMethod || strings.ContainsFunc(method, odd) || slices.ContainsFunc(o.Untraced, func(name string) bool {
		return method == name || strings.HasSuffix(name, "/") && strings.HasPrefix(method, name)
	})
}

// stranger tells whether a caller came by TLS and showed no certificate. Those
// that listeners do not ask for one are known by other means.
func stranger(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return ok && len(info.State.PeerCertificates) == 0
}

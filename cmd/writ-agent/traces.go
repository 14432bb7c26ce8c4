package main

import (
	"log/slog"
	"os"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/tracing"
	"github.com/writ-dev/writ/internal/tracing/otlp"
	"github.com/writ-dev/writ/internal/version"
)

// openTraces begins to send traces, where that is asked for.
func openTraces(cfg *tracing.Config, log *slog.Logger) (*otlp.Exporter, error) {
	return otlp.Open(cfg, otlp.Options{
		Service: "writ-agent", Version: version.String(), Getenv: os.Getenv, Log: log,
		// Calls that last: of those of workloads the first answer is traced.
		Untraced: []string{
			watchv1.EntryWatch_Watch_FullMethodName, revocationv1.Revocations_Watch_FullMethodName,
			"/" + healthpb.Health_ServiceDesc.ServiceName + "/",
			workloadpb.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName, workloadpb.SpiffeWorkloadAPI_FetchX509Bundles_FullMethodName,
			workloadpb.SpiffeWorkloadAPI_FetchJWTBundles_FullMethodName, secretv3.SecretDiscoveryService_StreamSecrets_FullMethodName,
		},
	})
}

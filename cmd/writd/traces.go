package main

import (
	"os"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/tracing/otlp"
	"github.com/writ-dev/writ/internal/version"
	"github.com/writ-dev/writ/policy/policyv1"
)

// openTraces begins to send traces, where that is asked for.
func (w *writd) openTraces() (err error) {
	service := func(desc grpc.ServiceDesc) string { return "/" + desc.ServiceName + "/" }
	w.traces, err = otlp.Open(w.cfg.Tracing, otlp.Options{
		Service: "writd", Version: version.String(), Instance: w.cfg.Replica, Getenv: os.Getenv, Log: w.log,
		// Streams that last, and what is asked every few seconds.
		Untraced: []string{
			watchv1.EntryWatch_Watch_FullMethodName, service(healthv1.Health_ServiceDesc),
			service(policyv1.Distribution_ServiceDesc), service(auditv1.Ingest_ServiceDesc), auditv1.Admin_Tail_FullMethodName,
		},
		// A node has no certificate before it is attested.
		Strangers: []string{agentv1.Agent_AttestAgent_FullMethodName},
	})
	return err
}

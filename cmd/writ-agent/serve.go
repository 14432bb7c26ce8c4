package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/attest"
	"github.com/writ-dev/writ/identity/attest/unix"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/identity/workload/sds"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/internal/version"
)

// drainTime is what calls get to end at shutdown. Streams are ended at once.
const drainTime = 3 * time.Second

// serve runs the agent until ctx is done, or until it cannot go on.
func serve(ctx context.Context, cfg agent.Config, token func() (string, error), log *slog.Logger) error {
	log.Info("writ-agent starts", "version", version.String(), "trust_domain", cfg.TrustDomain, "server", cfg.ServerAddress)
	traces, err := openTraces(cfg.Tracing, log)
	if err != nil {
		return err
	}
	defer traces.Close()
	node, err := agent.New(cfg, agent.Options{Token: token, Attestor: cfg.Attestor.New(), Log: log, Tracer: traces.Tracer()})
	if err != nil {
		return err
	}
	methods, err := cfg.WorkloadAttestors.New()
	if err != nil {
		return err
	}
	metrics := newMetrics(node)
	attestor := &attest.Workloads{Kernel: unix.New(unix.Config{Log: log}), Methods: methods, Log: log, Failed: metrics.attestorFailed}
	api, err := workload.NewServer(workload.Config{
		Source: node,
		Attest: func(ctx context.Context, p peercred.Peer) ([]string, error) {
			return attestor.Attest(ctx, p, node.Asked)
		},
		AttestAgain: func(ctx context.Context, p peercred.Peer) (selectors, silent []string, err error) {
			return attestor.AttestAgain(ctx, p, node.Asked)
		},
		ReattestInterval:     cfg.ReattestInterval,
		Running:              func(p peercred.Peer) (string, error) { return unix.Running(p.PID) },
		OfProgram:            unix.OfProgram,
		RevokedJWT:           node.RevokedJWT,
		MaxConnectionsPerUID: cfg.MaxConnectionsPerUID,
		MaxStreamsPerUID:     cfg.MaxStreamsPerUID,
		Log:                  log,
		Observe:              metrics.observe,
		Tracer:               traces.Tracer(),
	})
	if err != nil {
		return err
	}
	if err := sds.Register(api, sds.Config{Names: cfg.SDS, Log: log, Rejected: metrics.rejected.Inc}); err != nil {
		return err
	}
	// What spire-agent healthcheck and the probes of Kubernetes ask.
	healthy := health.NewServer()
	healthy.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(api.Registrar(), healthy)
	revocation.Register(api.Registrar(), node.Revocations(), api.Stopping())
	metrics.watch(api)
	traces.Register(metrics.registry, "writ_agent_")
	// The admin listener comes first: to fail on it before anything serves.
	admin, err := listenAdmin(cfg.Admin)
	if err != nil {
		return err
	}
	socket, err := unixsock.Listen(cfg.Socket, unixsock.Public())
	if err != nil {
		if admin != nil {
			admin.Close()
		}
		return err
	}
	log.Info("Workload API listens", "socket", unixsock.Path(cfg.Socket))

	// Each part ends when run does: when the program is told to stop, or when
	// one of them fails.
	group, run := errgroup.WithContext(ctx)
	// The agent ends last: calls that drain may still need the issuer.
	nodeCtx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	group.Go(func() error { return api.Serve(socket) })
	group.Go(func() error {
		defer stopNode()
		<-run.Done()
		daemon.Notify(log, daemon.Stopping)
		healthy.Shutdown()
		log.Info("writ-agent stops")
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		api.Stop(drain)
		return nil
	})
	if admin != nil {
		serveAdmin(group, run, admin, adminHandler(node, metrics))
		log.Info("admin listens", "address", admin.Addr().String())
	}
	group.Go(func() error { return node.Run(nodeCtx) })
	group.Go(func() error {
		select {
		case <-node.Ready():
			s := node.Status()
			log.Info("ready", "entries", s.Entries, "svids", s.SVIDs)
			daemon.Notify(log, fmt.Sprintf("%s\nSTATUS=serving %d entries", daemon.Ready, s.Entries))
			followHealth(run, node, healthy, log)
		case <-run.Done():
		}
		return nil
	})
	return group.Wait()
}

// followHealth keeps the answer to health checks true until ctx is done.
func followHealth(ctx context.Context, node *agent.Agent, healthy *health.Server, log *slog.Logger) {
	before := ""
	healthy.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	for ctx.Err() == nil {
		changed, until, problem := node.Health()
		switch {
		case problem != nil && problem.Error() != before:
			before = problem.Error()
			healthy.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
			log.Error("not serving", "reason", before)
		case problem == nil && before != "":
			before = ""
			healthy.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			log.Info("serving again")
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if !until.IsZero() {
			wait, cancel = context.WithDeadline(ctx, until)
		}
		select {
		case <-changed:
		case <-wait.Done():
		}
		cancel()
	}
}

func listenAdmin(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return ln, nil
}

func serveAdmin(group *errgroup.Group, run context.Context, ln net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	group.Go(func() error {
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("admin: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-run.Done()
		return server.Close()
	})
}

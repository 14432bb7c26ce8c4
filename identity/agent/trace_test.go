package agent_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/tracing"
	"github.com/writ-dev/writ/internal/tracing/otlp"
	"github.com/writ-dev/writ/internal/tracing/otlptest"
)

// tracerTo traces as the program called service does.
func tracerTo(t *testing.T, c *otlptest.Collector, service string) *tracing.Tracer {
	t.Helper()
	e, err := otlp.Open(&tracing.Config{Endpoint: c.URL}, otlp.Options{
		Service: service, Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler),
		Untraced: []string{
			watchv1.EntryWatch_Watch_FullMethodName, secretv3.SecretDiscoveryService_StreamSecrets_FullMethodName,
			workloadpb.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName, workloadpb.SpiffeWorkloadAPI_FetchX509Bundles_FullMethodName,
		},
	})
	must(t, err)
	t.Cleanup(e.Close)
	return e.Tracer()
}

// One trace goes from a workload's stream to the signature that it causes, and one
// from what is told of a change to everybody who is served by it.
func TestTracesOfStreams(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	collector := otlptest.Start(t)
	r := agenttest.StartConfig(t, time.Hour, issuer.Config{Tracer: tracerTo(t, collector, "writd")})
	made := r.Template("/user/{unix:user}", "/node/n1")
	token := r.Token("/node/n1")
	n := startTracedNode(t, config(t, r), token, tracerTo(t, collector, "writ-agent"))
	<-n.agent.Ready()
	ctx, api := n.api(t)
	stream, err := api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
	const fetch, secrets = "SpiffeWorkloadAPI/FetchX509SVID", "envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
	own := "spiffe://example.org/user/" + me(t)
	parent := func(trace []otlptest.Span, of otlptest.Span) string {
		for _, s := range trace {
			if string(s.SpanId) == string(of.ParentSpanId) {
				return s.Service + ": " + s.Name
			}
		}
		return ""
	}
	wantParents := func(trace []otlptest.Span, want map[string]string) {
		t.Helper()
		for _, s := range trace {
			if p, ok := want[s.Name]; ok && parent(trace, s) != p {
				t.Errorf("%s is below %q, want %q:\n%s", s.Name, parent(trace, s), p, otlptest.Tree(trace))
			}
		}
	}
	served := func(name, who string) func(otlptest.Span) bool {
		return func(s otlptest.Span) bool {
			return s.Name == name && strings.Contains(s.Attribute(tracing.SPIFFEIDs), who)
		}
	}
	fetched := collector.AwaitTrace(served("SpiffeWorkloadAPI/FetchX509SVID", own), "writ-agent: get SVIDs signed",
		"writd: writ.identity.template.v1.Issuance/NewX509SVIDs", "writd: put on record", "writd: sign X509-SVIDs")
	wantParents(fetched, map[string]string{fetch: "", "get SVIDs signed": "writ-agent: " + fetch, "sign X509-SVIDs": "writd: writ.identity.template.v1.Issuance/NewX509SVIDs"})
	t.Logf("fetched:\n%s", otlptest.Tree(fetched))

	// Envoy has the same; then an entry comes, of which both are told.
	cc, err := grpc.NewClient(n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer cc.Close()
	envoy, err := secretv3.NewSecretDiscoveryServiceClient(cc).StreamSecrets(t.Context())
	must(t, err)
	must(t, envoy.Send(&discoveryv3.DiscoveryRequest{}))
	_, err = envoy.Recv()
	must(t, err)
	entry := r.Create("/svc/web", "/node/n1", myUID())
	_, err = stream.Recv()
	must(t, err)
	pushed := collector.AwaitTrace(served(fetch, "/svc/web"), "writd: tell the agent of a change", "writ-agent: refresh", "writ-agent: sync entries",
		"writd: writ.identity.watch.v1.EntryWatch/Sync", "writd: sign X509-SVIDs", "writ-agent: "+secrets)
	wantParents(pushed, map[string]string{"tell the agent of a change": "", "refresh": "writd: tell the agent of a change", fetch: "writ-agent: refresh", secrets: "writ-agent: refresh"})
	t.Logf("pushed:\n%s", otlptest.Tree(pushed))

	// The end of a right is told in the trace of what ended it.
	r.Delete(entry)
	r.DeleteTemplate(made.Id)
	ended := func(s otlptest.Span) bool {
		return s.Name == fetch && s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR
	}
	collector.AwaitTrace(ended, "writd: tell the agent of a change", "writ-agent: refresh")
	for _, s := range collector.Spans() {
		if strings.Contains(s.String(), token) {
			t.Errorf("the join token is in a span: %s", s.String())
		}
		if strings.HasSuffix(s.Name, "EntryWatch/Watch") {
			t.Errorf("a call that lasts has a span: %s", s.Name)
		}
	}
}

// Where nothing is traced, nothing is remembered for it.
func TestNotTraced(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	r.Create("/svc/web", "/node/n1", myUID())
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	g, _, err := n.agent.Lookup(t.Context(), []string{"unix:" + myUID()})
	must(t, err)
	if g.Cause.Known() || len(g.Identities) != 1 {
		t.Errorf("got %+v", g)
	}
}

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/writ-dev/writ/internal/tracing/otlptest"
	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/test/programs"
)

// TestTraces follows what an agent asks for into the control plane, as an
// OpenTelemetry collector sees it: one is told of it by its configuration, the
// other by the environment. Then the collector goes away, and nothing else does.
func TestTraces(t *testing.T) {
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "500", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=lab"} {
		t.Setenv(name, value)
	}
	collector := otlptest.Start(t)
	dir := shortDir(t)
	ports, err := programs.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	server, err := programs.StartWritd(t.Context(), programs.ServerConfig{
		Path: filepath.Join(bin, "writd"), Dir: dir, TrustDomain: "example.org", IssuerPort: ports[0], ControlPort: ports[1],
		More: fmt.Sprintf("admin: 127.0.0.1:%d\ntracing:\n  endpoint: %s\n", ports[2], collector.URL),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	node := spiffeid.RequireFromString("spiffe://example.org/node/n1")
	token, err := server.JoinToken(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent", "run", "agent.sock")
	agent := startTracedAgent(t, collector.URL, dir, ports[3], token, fmt.Sprintf("trust_domain: example.org\nserver_address: 127.0.0.1:%d\n"+
		"trust_bundle: %s\ndata_dir: %s\nsocket: %s\nadmin: 127.0.0.1:%d\n", ports[0], filepath.Join(dir, "data", "public", "bundle.pem"), filepath.Join(dir, "agent", "data"), socket, ports[3]))
	create := func(path string) string {
		t.Helper()
		entry, err := server.Entry(node, path, fmt.Sprintf("unix:uid:%d", os.Getuid()))
		if err != nil {
			t.Fatal(err)
		}
		ids, err := server.CreateEntries(t.Context(), entry)
		if err != nil {
			t.Fatal(err)
		}
		return ids[0]
	}
	entryID := create("/svc/web")

	trace := collector.AwaitTrace
	signed := trace(func(s otlptest.Span) bool {
		return s.Name == "get SVIDs signed" && s.Attribute("writ.entry_ids") == entryID
	},
		"writd: tell the agent of a change", "writ-agent: refresh", "writ-agent: sync entries", "writ-agent: get SVIDs signed", "writ-agent: spire.api.server.svid.v1.SVID/BatchNewX509SVID",
		"writd: spire.api.server.svid.v1.SVID/BatchNewX509SVID", "writd: put on record", "writd: sign X509-SVIDs")
	for _, s := range signed {
		if s.Name == "sign X509-SVIDs" && (s.Attribute("writ.spiffe_ids") != "spiffe://example.org/svc/web" || s.Attribute("writ.entry_ids") != entryID) {
			t.Errorf("signed: %s", s.String())
		}
		if s.Resource["deployment.environment"] != "lab" {
			t.Errorf("resource of %s: %v", s.Service, s.Resource)
		}
	}
	t.Logf("an SVID:\n%s", otlptest.Tree(signed))
	attested := trace(func(s otlptest.Span) bool { return s.Service == "writ-agent" && s.Name == "attest node" },
		"writ-agent: spire.api.server.agent.v1.Agent/AttestAgent", "writd: spire.api.server.agent.v1.Agent/AttestAgent",
		"writd: attest node", "writd: registry transaction", "writd: put on record", "writd: sign X509-SVID")
	for _, s := range slices.Concat(signed, attested) {
		if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			t.Errorf("failed: %s", s.String())
		}
	}
	t.Logf("attestation:\n%s", otlptest.Tree(attested))

	address := workloadapi.WithAddr("unix://" + unixsock.Path(socket))
	jwt, err := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "reports"}, address)
	if err != nil {
		t.Fatal(err)
	}
	fetched := trace(func(s otlptest.Span) bool { return s.Name == "SpiffeWorkloadAPI/FetchJWTSVID" },
		"writ-agent: attest workload", "writ-agent: spire.api.server.svid.v1.SVID/NewJWTSVID", "writd: spire.api.server.svid.v1.SVID/NewJWTSVID", "writd: put on record", "writd: sign JWT-SVID")
	t.Logf("a JWT-SVID:\n%s", otlptest.Tree(fetched))
	if _, err := workloadapi.FetchX509SVID(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	trace(func(s otlptest.Span) bool {
		return s.Name == "SpiffeWorkloadAPI/FetchX509SVID" && s.Attribute("writ.spiffe_ids") == "spiffe://example.org/svc/web"
	}, "writ-agent: attest workload")
	// What is pushed is one trace, from the control plane to the workload.
	client, err := workloadapi.New(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClient(client))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	create("/svc/pushed")
	pushed := trace(func(s otlptest.Span) bool {
		return s.Name == "SpiffeWorkloadAPI/FetchX509SVID" && strings.Contains(s.Attribute("writ.spiffe_ids"), "/svc/pushed")
	}, "writd: tell the agent of a change", "writ-agent: refresh", "writd: sign X509-SVIDs")
	t.Logf("pushed:\n%s", otlptest.Tree(pushed))
	for _, s := range collector.Spans() {
		for what, secret := range map[string]string{"join token": token, "JWT-SVID": jwt.Marshal()} {
			if strings.Contains(s.String(), secret) {
				t.Errorf("the %s is in a span: %s", what, s.String())
			}
		}
		if strings.HasSuffix(s.Name, "/Watch") {
			t.Errorf("a call that lasts has a span: %s", s.Name)
		}
	}

	collector.Stop()
	create("/svc/later")
	eventually(t, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		got, err := workloadapi.FetchX509Context(ctx, address)
		if err == nil && len(got.SVIDs) != 3 {
			err = fmt.Errorf("%d SVIDs", len(got.SVIDs))
		}
		return err
	})
	for _, port := range ports[2:4] {
		eventually(t, 30*time.Second, func() error {
			page := get(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
			for line := range strings.Lines(page) {
				if strings.Contains(line, `trace_spans_dropped_total{cause="not_taken"}`) && !strings.HasSuffix(line, " 0\n") {
					return nil
				}
			}
			return fmt.Errorf("port %d: no span is dropped", port)
		})
	}
	if err := agent.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
}

func startTracedAgent(t *testing.T, collector, dir string, port int, token, config string) *programs.Program {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "agent"), 0o700); err != nil {
		t.Fatal(err)
	}
	config += "join_token_file: " + write(t, dir, "token", token) + "\n"
	p, err := programs.Start(programs.Config{
		Path: filepath.Join(bin, "writ-agent"), Args: []string{"--config", write(t, dir, "agent.yaml", config)},
		Env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector}, Log: filepath.Join(dir, "agent.log"), Notify: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("writ-agent:\n%s", p.Tail())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/workload/sds"
	"github.com/writ-dev/writ/internal/unixsock"
)

// notifications listens where a service manager would.
func notifications(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func awaitNotification(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(buf[:n]), want) {
			return
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestServe(t *testing.T) {
	issuer := agenttest.Start(t, time.Hour)
	issuer.Create("/svc/web", "/node/n1", fmt.Sprintf("uid:%d", os.Getuid()))
	dir := t.TempDir()
	socket, admin := filepath.Join(dir, "run", "agent.sock"), freePort(t)
	file := filepath.Join(dir, "agent.yaml")
	content := fmt.Sprintf("trust_domain: example.org\nserver_address: %s\ntrust_bundle: %s\ndata_dir: %s\nsocket: /overridden/by/flag\n",
		issuer.Address, issuer.Bundle, filepath.Join(dir, "data"))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	manager := notifications(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		args := []string{"--config", file, "--socket", socket, "--admin", admin, "--join-token-file", "-", "--log-format", "json"}
		code <- spec().Execute(ctx, args, strings.NewReader(issuer.Token("/node/n1")+"\n"), io.Discard, &stderr)
	}()
	awaitNotification(t, manager, "READY=1")

	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+unixsock.Path(socket))))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if got := svid.ID.String(); got != "spiffe://example.org/svc/web" {
		t.Errorf("SVID of %s", got)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "writ_agent_svids 1"} {
		resp, err := http.Get("http://" + admin + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s answers %d without %q: %s", path, resp.StatusCode, want, body)
		}
	}
	// Nothing is traced unless that is asked for.
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("go.opentelemetry.io")) {
		t.Errorf("tracing runs:\n%s", stacks)
	}
	cc, err := grpc.NewClient("unix:"+unixsock.Path(socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if health, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || health.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	cancel()
	awaitNotification(t, manager, "STOPPING=1")
	if c := <-code; c != 0 {
		t.Errorf("exit code %d: %s", c, stderr.String())
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the socket is still there")
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	minimal := "trust_domain: example.org\ndata_dir: " + filepath.Join(dir, "data") + "\nsocket: " + filepath.Join(dir, "run", "s") + "\n"
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "--trust-domain: required"},
		{"unknown key", []string{"--config", write("a.yaml", "trustdomain: x\n")}, `a.yaml:1:1: trustdomain: unknown key: did you mean "trust_domain"?`},
		{"bad value", []string{"--config", write("b.yaml", minimal+"sync_interval: 1ms\n")}, "b.yaml:4:16: sync_interval: want 100ms to 1h, got 1ms"},
		{"one name for two things", []string{"--config", write("e.yaml", minimal+"sds:\n  default_bundle_name: ALL\n")}, `e.yaml:5:24: sds.default_bundle_name: "ALL" is the default_all_bundles_name as well`},
		{"collector", []string{"--config", write("g.yaml", minimal+"tracing:\n  endpoint: collector:4317\n")}, `g.yaml:5:13: tracing.endpoint: want https://host:port, or http://host:port for a plain connection`},
		{"share", []string{"--config", write("h.yaml", minimal+"tracing:\n  sample: 1.5\n")}, `h.yaml:5:11: tracing.sample: want 0 to 1, got 1.5`},
		{"collector's authorities", []string{"--config", write("i.yaml", minimal+"tracing:\n  endpoint: https://c:1\n  ca_file: /absent\n")}, `i.yaml:6:12: tracing.ca_file: open /absent`},
		{"relative socket", []string{"--config", write("j.yaml", "trust_domain: example.org\ndata_dir: d\nsocket: run/s\n")}, `j.yaml:3:9: socket: want an absolute path`},
		{"socket in the data directory", []string{"--config", write("m.yaml", "trust_domain: example.org\ndata_dir: /var/lib/a\nsocket: /var/lib/a/run/s\n")}, `m.yaml:3:9: socket: lies in data_dir`},
		{"no trust bundle", []string{"--config", write("k.yaml", minimal+"trust_bundle: /nope\n")}, `k.yaml:4:15: trust_bundle: `},
		{"kubelet without TLS", []string{"--config", write("l.yaml", minimal+"workload_attestors:\n  k8s:\n    url: http://127.0.0.1:10255\n")}, `l.yaml:6:10: workload_attestors.k8s.url: want https://host:port`},
		{"bad flag value", []string{"--config", write("c.yaml", minimal), "--admin", "0.0.0.0:1"}, "admin: want a loopback address"},
		{"no token", []string{"--config", write("d.yaml", minimal)}, "the node must be attested: no join token"},
		{"log level", []string{"--log-level", "loud"}, "want debug, info, warn or error"},
		{"token as an argument", []string{"--join-token", "abc"}, "unknown flag"},
		{"argument", []string{"abc"}, `unknown command "abc"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("WRIT_JOIN_TOKEN", "")
			var stdout, stderr bytes.Buffer
			if code := spec().Execute(t.Context(), tc.args, strings.NewReader(""), &stdout, &stderr); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("stderr lacks %q: %s", tc.want, stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout: %s", stdout.String())
			}
		})
	}
}

func TestNeedsBundle(t *testing.T) {
	t.Setenv("WRIT_JOIN_TOKEN", "a-token")
	dir := t.TempDir()
	var stderr bytes.Buffer
	args := []string{"--trust-domain", "example.org", "--data-dir", filepath.Join(dir, "data"), "--socket", filepath.Join(dir, "run", "s")}
	if code := spec().Execute(t.Context(), args, strings.NewReader(""), io.Discard, &stderr); code != 1 || !strings.Contains(stderr.String(), "no trust bundle") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

// Each key of the file has its flag, and the flag wins.
func TestFlagsOverrideEveryField(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.yaml")
	content := "trust_domain: example.org\nserver_address: a:1\ntrust_bundle: b\ninsecure_bootstrap: false\njoin_token_file: t\n" +
		"data_dir: d\nsocket: s\nsync_interval: 1s\nmax_connections_per_uid: 1\nmax_streams_per_uid: 1\nreattest_interval: 2s\n" +
		"sds: {default_svid_name: a,\n default_bundle_name: b,\n default_all_bundles_name: c,\n disable_spiffe_cert_validation: false}\nadmin: 127.0.0.1:1\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	want := agent.Config{
		TrustDomain: "other.org", ServerAddress: "z:9", InsecureBootstrap: true, JoinTokenFile: "-", DataDir: "dd", Socket: "/ss",
		SyncInterval: 2 * time.Second, MaxConnectionsPerUID: 3, MaxStreamsPerUID: 4, Admin: "[::1]:5", ReattestInterval: 3 * time.Second,
		SDS: sds.Names{DefaultSVIDName: "x", DefaultBundleName: "", DefaultAllBundlesName: "z", DisableSPIFFECertValidation: true},
	}
	args := []string{"--trust-domain=other.org", "--server-address=z:9", "--trust-bundle=", "--insecure-bootstrap", "--join-token-file=-",
		"--data-dir=dd", "--socket=/ss", "--sync-interval=2s", "--max-connections-per-uid=3", "--max-streams-per-uid=4", "--reattest-interval=3s", "--sds-default-svid-name=x",
		"--sds-default-bundle-name=", "--sds-default-all-bundles-name=z", "--sds-disable-spiffe-cert-validation", "--admin=[::1]:5"}
	var cfg agent.Config
	given := 0
	s := spec()
	s.Run = func(_ context.Context, cmd *cobra.Command, got agent.Config, _ *slog.Logger) error {
		cfg = got
		bound := pflag.NewFlagSet("", pflag.ContinueOnError)
		configFlags(bound, &agent.Config{})
		bound.VisitAll(func(f *pflag.Flag) {
			if given++; !cmd.Flags().Changed(f.Name) {
				t.Errorf("--%s is not in this test", f.Name)
			}
		})
		return nil
	}
	var stderr bytes.Buffer
	if code := s.Execute(t.Context(), append(args, "--config", file), strings.NewReader(""), io.Discard, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if given != strings.Count(content, "\n") {
		t.Errorf("%d flags for %d keys", given, strings.Count(content, "\n"))
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		var stdout, stderr bytes.Buffer
		if code := spec().Execute(t.Context(), []string{"completion", shell}, strings.NewReader(""), &stdout, &stderr); code != 0 || stdout.Len() == 0 {
			t.Errorf("%s: exit code %d: %s", shell, code, stderr.String())
		}
	}
}

func TestCheck(t *testing.T) {
	var stdout, stderr bytes.Buffer
	args := []string{"--check", "--trust-domain", "example.org", "--data-dir", "d", "--socket", "/s"}
	if code := spec().Execute(t.Context(), args, strings.NewReader(""), &stdout, &stderr); code != 0 || stdout.String() != "configuration ok\n" {
		t.Errorf("exit code %d, %q, %s", code, stdout.String(), stderr.String())
	}
	if _, err := os.Stat("d"); err == nil {
		t.Error("--check made the data directory")
	}
}

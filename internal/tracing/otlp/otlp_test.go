package otlp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/internal/tracing"
	"github.com/writ-dev/writ/internal/tracing/otlptest"
)

// environment is one with these variables.
func environment(vars ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(vars); i += 2 {
			if vars[i] == name {
				return vars[i+1]
			}
		}
		return ""
	}
}

func open(t *testing.T, cfg *tracing.Config, change func(*Options), vars ...string) *Exporter {
	t.Helper()
	// The SDK reads this one by itself.
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	opt := Options{Service: "test", Version: "1.2.3", Instance: "i1", Getenv: environment(vars...), Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&opt)
	}
	e, err := Open(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestOffByDefault(t *testing.T) {
	for _, vars := range [][]string{
		nil,
		{"OTEL_SERVICE_NAME", "x", "OTEL_TRACES_SAMPLER", "always_on"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317", "OTEL_SDK_DISABLED", "true"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317", "OTEL_TRACES_EXPORTER", "none"},
	} {
		for _, cfg := range []*tracing.Config{nil, {}} {
			e := open(t, cfg, nil, vars...)
			if e != nil || e.Tracer() != nil {
				t.Errorf("%v: traces go to %s", vars, e.sent.endpoint)
			}
			e.Close()
			reg := prometheus.NewRegistry()
			e.Register(reg, "test_")
			if found, err := reg.Gather(); err != nil || len(found) > 0 {
				t.Errorf("%v: metrics %v, %v", vars, found, err)
			}
		}
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: collectorCert(t).Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	const endpoint, all = "OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:1"
	half := 0.5
	for _, tc := range []struct {
		name string
		cfg  tracing.Config
		vars []string
		want string // address, plain or tls with whose roots, sampler, queue
	}{
		{"configuration alone", tracing.Config{Endpoint: "http://c:2"}, nil, "c:2 plain ParentBased{root:AlwaysOnSampler 2048"},
		{"environment alone", tracing.Config{}, []string{endpoint, all}, "all:1 system ParentBased{root:AlwaysOnSampler 2048"},
		{"that of traces", tracing.Config{}, []string{endpoint, all, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:3"}, "traces:3 plain ParentBased{root:AlwaysOnSampler 2048"},
		{"configuration first", tracing.Config{Endpoint: "https://c", CAFile: ca, Sample: &half}, []string{endpoint, "http://all:1", "OTEL_TRACES_SAMPLER", "always_off", "OTEL_EXPORTER_OTLP_CERTIFICATE", "/absent"},
			"c:4317 own ParentBased{root:TraceIDRatioBased{0.5} 2048"},
		{"insecure does not count", tracing.Config{}, []string{endpoint, all, "OTEL_EXPORTER_OTLP_INSECURE", "true"}, "all:1 system ParentBased{root:AlwaysOnSampler 2048"},
		{"all of it", tracing.Config{}, []string{endpoint, all, "OTEL_EXPORTER_OTLP_CERTIFICATE", ca, "OTEL_TRACES_SAMPLER", "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG", "0.25",
			"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_TRACES_EXPORTER", "otlp", "OTEL_BSP_MAX_QUEUE_SIZE", "7"}, "all:1 own ParentBased{root:TraceIDRatioBased{0.25} 7"},
		{"not by the parent", tracing.Config{}, []string{endpoint, all, "OTEL_TRACES_SAMPLER", "always_on"}, "all:1 system AlwaysOnSampler 2048"},
	} {
		s, err := resolve(&tc.cfg, environment(tc.vars...))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		how := "plain"
		if s.tls != nil {
			if how = "system"; s.tls.RootCAs != nil {
				how = "own"
			}
			if s.tls.InsecureSkipVerify || s.tls.MinVersion < tls.VersionTLS12 {
				t.Errorf("%s: the collector is not proven", tc.name)
			}
		}
		sampler, _, _ := strings.Cut(s.sampler.Description(), ",")
		if got := fmt.Sprintf("%s %s %s %d", s.address, how, sampler, s.queue); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	at := func(key, format string, args ...any) error { return fmt.Errorf("at "+key+": "+format, args...) }
	for _, tc := range []struct {
		cfg  tracing.Config
		vars []string
		want string
	}{
		{tracing.Config{Endpoint: "https://c:1", CAFile: filepath.Join(dir, "absent")}, nil, "at tracing.ca_file: open"},
		{tracing.Config{}, []string{endpoint, "c:4317"}, "tracing: OTEL_EXPORTER_OTLP_ENDPOINT: want https://"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_EXPORTER_OTLP_CERTIFICATE", "/absent"}, "tracing: OTEL_EXPORTER_OTLP_CERTIFICATE: open"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_EXPORTER_OTLP_CLIENT_KEY", "k"}, "give both or none"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"}, "tracing: OTEL_EXPORTER_OTLP_PROTOCOL: OTLP is spoken over gRPC only"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_TRACES_EXPORTER", "zipkin"}, "OTEL_TRACES_EXPORTER: want otlp or none"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_TRACES_SAMPLER", "often"}, "OTEL_TRACES_SAMPLER: want always_on"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "NaN"}, "OTEL_TRACES_SAMPLER_ARG: want 0 to 1"},
		{tracing.Config{}, []string{endpoint, all, "OTEL_BSP_MAX_QUEUE_SIZE", "0"}, "OTEL_BSP_MAX_QUEUE_SIZE: want a number"},
	} {
		if err := Check(&tc.cfg, environment(tc.vars...), at); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v %v: %v, want %s", tc.cfg, tc.vars, err, tc.want)
		}
	}
}

func TestResourceIsChecked(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "no-value")
	at := func(key, format string, args ...any) error { return fmt.Errorf(format, args...) }
	cfg := &tracing.Config{Endpoint: "http://127.0.0.1:4317"}
	if err := Check(cfg, environment(), at); err == nil || !strings.Contains(err.Error(), "OTEL_RESOURCE_ATTRIBUTES") {
		t.Errorf("%v", err)
	}
	if err := Check(nil, environment(), at); err != nil {
		t.Errorf("where nothing is traced: %v", err)
	}
	if e, err := Open(cfg, Options{Getenv: environment(), Log: slog.New(slog.DiscardHandler)}); err == nil {
		e.Close()
		t.Error("it traces all the same")
	}
}

func TestUntraced(t *testing.T) {
	o := Options{Untraced: []string{"/a.B/Watch", "/grpc.health.v1.Health/"}}
	for method, want := range map[string]bool{
		"/a.B/Get": false, "/a.B/Watch": true, "/a.B/WatchAll": false, "/grpc.health.v1.Health/Check": true,
		"/a.B/" + strings.Repeat("x", maxMethod): true, "/a.B/\x00": true, "/a.B/G et": true, "/a.B/é": true,
	} {
		if got := o.untraced(method); got != want {
			t.Errorf("%q: %v", method, got)
		}
	}
}

// collectorCert is a certificate for 127.0.0.1 that signs itself.
func collectorCert(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// What is recorded arrives over TLS, says who it is of, and holds no join token.
func TestExport(t *testing.T) {
	cert := collectorCert(t)
	collector := otlptest.Start(t, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab")
	e := open(t, &tracing.Config{Endpoint: collector.URL, CAFile: ca}, nil)
	defer e.Close()
	const token = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	ctx, root := e.Tracer().Begin(t.Context(), "root")
	root.String(tracing.Caller, "spiffe://example.org/spire/agent/join_token/"+token)
	_, part := tracing.Start(ctx, "part")
	tracing.List(part, tracing.SPIFFEIDs, []string{"spiffe://example.org/svc/web", "spiffe://example.org/spire/agent/join_token/" + token}, func(s string) string { return s })
	part.End(errors.New(`no agent "spiffe://example.org/spire/agent/join_token/` + token + `" here`))
	root.End(nil)
	spans := collector.Await("two spans", func(spans []otlptest.Span) []otlptest.Span {
		if len(spans) < 2 {
			return nil
		}
		return otlptest.Trace(spans, spans[0])
	})
	if got, want := otlptest.Tree(spans), "test: root\n  test: part\n"; got != want {
		t.Errorf("spans:\n%s", got)
	}
	for _, s := range spans {
		if s.Resource["service.version"] != "1.2.3" || s.Resource["service.instance.id"] != "i1" || s.Resource["deployment.environment"] != "lab" {
			t.Errorf("resource %v", s.Resource)
		}
		if text := s.String(); strings.Contains(text, token) || !strings.Contains(text, "join_token/") {
			t.Errorf("a token has left: %s", text)
		}
	}
}

// A collector that does not prove itself gets nothing.
func TestCollectorUnproven(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "200")
	cert := collectorCert(t)
	proven := otlptest.Start(t, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	plain := otlptest.Start(t)
	for name, endpoint := range map[string]string{
		"by none of the system's roots": proven.URL,
		"plain behind https":            strings.Replace(plain.URL, "http:", "https:", 1),
	} {
		e := open(t, &tracing.Config{Endpoint: endpoint}, nil, "OTEL_EXPORTER_OTLP_INSECURE", "true")
		_, span := e.Tracer().Begin(t.Context(), "root")
		span.End(nil)
		e.Close()
		if e.sent.failed.Load() != 1 || e.sent.exported.Load() != 0 {
			t.Errorf("%s: %d failed, %d exported", name, e.sent.failed.Load(), e.sent.exported.Load())
		}
	}
	if n := len(proven.Spans()) + len(plain.Spans()); n > 0 {
		t.Errorf("%d spans have left", n)
	}
}

// A collector that never answers holds nothing up: what does not fit is dropped
// and counted, and the end is not waited for.
func TestCollectorHangs(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_BSP_EXPORT_TIMEOUT"} {
		t.Setenv(name, "3600000") // it is ours to give up
	}
	var log bytes.Buffer
	e := open(t, nil, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) },
		"OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+ln.Addr().String(), "OTEL_BSP_MAX_QUEUE_SIZE", "4")
	const spans = 100
	for range spans {
		_, span := e.Tracer().Begin(t.Context(), "root")
		span.End(nil)
	}
	if waiting, full := e.sent.waiting.Load(), e.sent.full.Load(); waiting != 4 || full != spans-4 {
		t.Errorf("%d wait, %d were dropped, want 4 and %d", waiting, full, spans-4)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		e.close(50 * time.Millisecond)
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("the end is waited for")
	}
	if failed, waiting := e.sent.failed.Load(), e.sent.waiting.Load(); failed != 4 || waiting != 0 {
		t.Errorf("%d are lost at the end, and %d wait", failed, waiting)
	}
	if n := strings.Count(log.String(), "does not take traces"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, log.String())
	}
	reg := prometheus.NewRegistry()
	e.Register(reg, "test_")
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`test_trace_spans_dropped_total{cause="queue_full"} 96`, `test_trace_spans_dropped_total{cause="not_taken"} 4`, "test_trace_spans_exported_total 0"} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no %s in:\n%s", want, rec.Body.String())
		}
	}
}

// Whose trace goes on at a listener: that of who has shown something, or calls a
// method by which one does. Long calls have no span.
func TestWhoseTraceCounts(t *testing.T) {
	collector := otlptest.Start(t)
	e := open(t, &tracing.Config{Endpoint: collector.URL}, func(o *Options) {
		o.Strangers, o.Untraced = []string{healthpb.Health_List_FullMethodName}, []string{healthpb.Health_Watch_FullMethodName}
	})
	serverCert, clientCert := collectorCert(t), collectorCert(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(e.Tracer().ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{serverCert}, ClientAuth: tls.RequestClientCert})))...)
	healthpb.RegisterHealthServer(s, health.NewServer())
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(ln) })
	defer serving.Wait()
	defer s.Stop()
	call := func(certs []tls.Certificate, do func(context.Context, healthpb.HealthClient) error) trace.TraceID {
		t.Helper()
		options := append(e.Tracer().DialOptions(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: certs})))
		cc, err := grpc.NewClient(ln.Addr().String(), options...)
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		ctx, span := e.Tracer().Begin(t.Context(), "caller")
		defer span.End(nil)
		if err := do(ctx, healthpb.NewHealthClient(cc)); err != nil {
			t.Fatal(err)
		}
		return trace.SpanContextFromContext(ctx).TraceID()
	}
	check := func(ctx context.Context, c healthpb.HealthClient) error {
		_, err := c.Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
	list := func(ctx context.Context, c healthpb.HealthClient) error {
		_, err := c.List(ctx, &healthpb.HealthListRequest{})
		return err
	}
	watch := func(ctx context.Context, c healthpb.HealthClient) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	known := call([]tls.Certificate{clientCert}, check)
	stranger := call(nil, check)
	attesting := call(nil, list)
	long := call([]tls.Certificate{clientCert}, watch)
	s.GracefulStop()
	e.Close()
	spans := collector.Spans()
	of := func(id trace.TraceID) (names []string) {
		for _, s := range spans {
			if string(s.TraceId) == string(id[:]) {
				names = append(names, s.Kind.String()+" "+s.Name)
			}
		}
		return names
	}
	for name, tc := range map[string]struct {
		id   trace.TraceID
		want int
	}{"known": {known, 3}, "stranger": {stranger, 2}, "attesting stranger": {attesting, 3}, "long": {long, 1}} {
		if got := of(tc.id); len(got) != tc.want {
			t.Errorf("%s: %d spans, want %d: %v", name, len(got), tc.want, got)
		}
	}
	linked := false
	for _, s := range spans {
		linked = linked || len(s.Links) == 1 && string(s.Links[0].TraceId) == string(stranger[:])
	}
	if !linked {
		t.Error("the stranger's trace is not linked to")
	}
}

// On a Unix socket callers are known by other means than certificates.
func TestTraceOverSocket(t *testing.T) {
	collector := otlptest.Start(t)
	e := open(t, &tracing.Config{Endpoint: collector.URL}, nil)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(e.Tracer().ServerOptions()...)
	healthpb.RegisterHealthServer(s, health.NewServer())
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(ln) })
	defer serving.Wait()
	defer s.Stop()
	cc, err := grpc.NewClient("unix:"+ln.Addr().String(), append(e.Tracer().DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, span := e.Tracer().Begin(t.Context(), "caller")
	if _, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	span.End(nil)
	s.GracefulStop()
	e.Close()
	spans := collector.Spans()
	if got, want := otlptest.Tree(spans), "test: caller\n  test: grpc.health.v1.Health/Check\n    test: grpc.health.v1.Health/Check\n"; got != want {
		t.Errorf("spans:\n%s", got)
	}
}

// What several asked for is a part of the trace of the first, and linked to the others
// and to what it happened in. A cause that is not recorded is none.
func TestCauses(t *testing.T) {
	collector := otlptest.Start(t)
	e := open(t, &tracing.Config{Endpoint: collector.URL}, nil)
	var causes tracing.Causes
	for _, name := range []string{"first", "second"} {
		ctx, span := e.Tracer().Begin(t.Context(), name)
		causes.Add(tracing.CauseOf(ctx))
		span.End(nil)
	}
	causes.Add(tracing.CauseOf(t.Context()))
	ctx, around := e.Tracer().Begin(t.Context(), "around")
	_, span := e.Tracer().Begin(ctx, "caused", causes.Take()...)
	span.End(nil)
	around.End(nil)
	e.Close()
	named := map[string]otlptest.Span{}
	for _, s := range collector.Spans() {
		named[s.Name] = s
	}
	caused := named["caused"]
	if string(caused.ParentSpanId) != string(named["first"].SpanId) || string(caused.TraceId) != string(named["first"].TraceId) {
		t.Errorf("spans:\n%s", otlptest.Tree(collector.Spans()))
	}
	var links []string
	for _, link := range caused.Links {
		links = append(links, string(link.SpanId))
	}
	if want := []string{string(named["second"].SpanId), string(named["around"].SpanId)}; !slices.Equal(links, want) {
		t.Errorf("linked to %q, want %q", links, want)
	}
}

// What is not sampled is not recorded further on either.
func TestNotSampled(t *testing.T) {
	collector := otlptest.Start(t)
	none := 0.0
	e := open(t, &tracing.Config{Endpoint: collector.URL, Sample: &none}, nil)
	ctx, root := e.Tracer().Begin(t.Context(), "root")
	if root.Recorded() {
		t.Error("it is recorded")
	}
	if _, part := tracing.Start(ctx, "part"); part.Recorded() {
		t.Error("a part of it is recorded")
	}
	if _, part := e.Tracer().Begin(ctx, "part"); part.Recorded() {
		t.Error("a part of it begins a trace")
	}
	root.End(nil)
	e.Close()
	if spans := collector.Spans(); len(spans) > 0 {
		t.Errorf("spans:\n%s", otlptest.Tree(spans))
	}
}

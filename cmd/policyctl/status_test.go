package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/policy/policyv1"
)

var statusNow = time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)

func statusResponse() *policyv1.StatusResponse {
	rev := &policyv1.Revision{Epoch: 1, Number: 3, Digest: bytes.Repeat([]byte{0xab}, 32)}
	ago := func(d time.Duration) int64 { return statusNow.Add(-d).UnixNano() }
	return &policyv1.StatusResponse{
		TrustDomain: "example.org", Version: "1.0", Revision: rev, RevisionActivated: ago(90 * time.Minute),
		Components: []*policyv1.Component{
			{
				Kind: "sidecar", Name: "web", SpiffeId: "spiffe://example.org/svc/web", Connected: true, Engine: "compiled", SvidExpires: ago(-59 * time.Minute),
				Revision: rev, RevisionActivated: ago(90 * time.Minute), Mode: "enforce", AuditLag: 4,
				NotEnforced: []string{"the application also listens on 0.0.0.0:80"}, Problems: []string{"events cannot be recorded: no space left on device"},
			},
			{Kind: "agent", Name: "local", SpiffeId: "spiffe://example.org/node/local", LastSeen: ago(26 * time.Hour), SvidExpires: ago(time.Second)},
			{Kind: "sidecar", Name: "api", Connected: true, Refused: "signature: unknown key"},
		},
		Alarms: []string{"join token used twice"},
	}
}

func TestStatusTable(t *testing.T) {
	var out bytes.Buffer
	if err := newStatusReport(statusResponse()).write(&out, statusNow); err != nil {
		t.Fatal(err)
	}
	want := `trust domain  example.org
writd         1.0
policy        1.3@abababababab, 1h30m old

KIND     NAME   SPIFFE ID                        STATE       EXPIRES IN  REVISION          AGE    ENGINE    AUDIT LAG  MODE
agent    local  spiffe://example.org/node/local  gone 1d02h  expired     none              -      -         0          -
sidecar  api    -                                connected   -           none              -      -         0          -
sidecar  web    spiffe://example.org/svc/web     connected   59m00s      1.3@abababababab  1h30m  compiled  4          enforce

problems
  web: events cannot be recorded: no space left on device

last revision refused
  api: signature: unknown key

not enforced
  web: the application also listens on 0.0.0.0:80

alarms
  join token used twice
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// A ban is not about a revision of policy.
func TestStatusOfBannedAgent(t *testing.T) {
	var out bytes.Buffer
	r := newStatusReport(&policyv1.StatusResponse{Components: []*policyv1.Component{{Kind: "agent", SpiffeId: "spiffe://example.org/spire/agent/x", Refused: "banned"}}})
	if err := r.write(&out, statusNow); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "agents refused\n  spiffe://example.org/spire/agent/x: banned") || strings.Contains(got, "revision refused") {
		t.Error(got)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 900 * time.Millisecond: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s",
		2*time.Hour + 5*time.Minute: "2h05m", 50 * time.Hour: "2d02h",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

type fixedStatus struct {
	policyv1.UnimplementedStatusServer
}

func (fixedStatus) Get(context.Context, *policyv1.StatusRequest) (*policyv1.StatusResponse, error) {
	return statusResponse(), nil
}

// serveAdmin serves a control plane's admin socket in dir.
func serveAdmin(t *testing.T, dir string, register func(*grpc.Server)) {
	t.Helper()
	ln, err := unixsock.Listen(filepath.Join(dir, "run", "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	register(srv)
	done := make(chan struct{})
	go func(ln net.Listener) { defer close(done); _ = srv.Serve(ln) }(ln)
	t.Cleanup(func() { srv.Stop(); <-done })
}

func TestStatusCommand(t *testing.T) {
	dir := t.TempDir()
	serveAdmin(t, dir, func(s *grpc.Server) { policyv1.RegisterStatusServer(s, fixedStatus{}) })
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"status", "--data-dir", dir, "-o", "json"}, nil, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var got statusReport
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.TrustDomain != "example.org" || len(got.Components) != 3 || got.Components[2].AuditLag != 4 || got.Components[2].Revision != "1.3@abababababab" {
		t.Errorf("got %+v", got)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/proxy"
)

const testMesh = `
trust_domain: example.org
svid_ttl: 10s
policy: policy
record: {headers: [x-team]}
services:
  - name: web
    command: [web]
    upstreams: [{service: shop}, {service: pay}]
  - {name: shop, address: "127.0.0.1:1", mode: observe, observe_until: 2030-01-31}
  - {name: pay, command: [pay], protocol: grpc, port: 2}
  - name: me
    upstreams: [{service: shop}]
`

func parseMesh(t *testing.T) *mesh.Mesh {
	t.Helper()
	m, err := mesh.Parse("/mesh/mesh.yaml", []byte(testMesh))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPortsAreChosenOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	first := parseMesh(t)
	p, err := assignPorts(first, path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{1: true, 2: true}
	for use, port := range p.kept {
		if seen[port] || port < lowestPort || port >= ephemeralStart() {
			t.Errorf("%s has port %d", use, port)
		}
		seen[port] = true
	}
	// web's program and two upstreams, me's upstream, three inbound listeners,
	// four admin ports, two of writd.
	if len(p.kept) != 13 {
		t.Errorf("%d ports: %v", len(p.kept), p.kept)
	}
	second := parseMesh(t)
	q, err := assignPorts(second, path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.kept, q.kept); diff != "" {
		t.Errorf("kept (-first +second):\n%s", diff)
	}
	if first.Services[0].Port != second.Services[0].Port || first.Services[0].Upstreams[1].Port != second.Services[0].Upstreams[1].Port {
		t.Error("the mesh has other ports the second time")
	}
}

func TestTakenPortIsChosenAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	p, err := assignPorts(parseMesh(t), path)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", p.address(useControl))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	q, err := assignPorts(parseMesh(t), path)
	if err != nil {
		t.Fatal(err)
	}
	if q.kept[useControl] == p.kept[useControl] || cmp.Diff([]string{useControl}, q.moved) != "" {
		t.Errorf("control at %d, then %d; moved %v", p.kept[useControl], q.kept[useControl], q.moved)
	}
}

func TestPortsFileIsChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := assignPorts(parseMesh(t), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestSidecarRunsFromItsOwnPath(t *testing.T) {
	d := upDir(t.TempDir())
	program := d.path("writ-sidecar")
	write := func(text string) {
		t.Helper()
		if err := os.RemoveAll(program); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range []string{"one", "one", "two"} {
		write(version)
		a, err := d.linkSidecar(program, "a")
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.linkSidecar(program, "b")
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(a); a == b || err != nil || string(data) != version {
			t.Errorf("%s and %s, %q, %v", a, b, data, err)
		}
	}
}

func TestCopyOfTheSidecar(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := copyProgram(from, to, info); err != nil {
		t.Fatal(err)
	}
	have, err := os.Stat(to)
	if err != nil || !have.ModTime().Equal(info.ModTime()) || have.Mode().Perm() != 0o700 {
		t.Errorf("copy %v, %v", have, err)
	}
}

// The files that up writes are ones that the programs accept.
func TestConfigsAreValid(t *testing.T) {
	u := &upRun{dir: upDir(t.TempDir()), mesh: parseMesh(t)}
	var err error
	if u.ports, err = assignPorts(u.mesh, u.dir.path("ports.json")); err != nil {
		t.Fatal(err)
	}
	if err := u.configs(); err != nil {
		t.Fatal(err)
	}
	writd := writdconf.Default()
	pos, err := strictyaml.Load(u.dir.path("run", "writd.yaml"), &writd)
	if err != nil {
		t.Fatal(err)
	}
	if err := writd.Validate(pos.Errorf); err != nil {
		t.Error(err)
	}
	if writd.SVIDTTL != 10*time.Second || writd.DataDir != string(u.dir) {
		t.Errorf("writd %+v", writd)
	}
	node := agent.Default()
	if _, err := strictyaml.Load(u.dir.path("run", "agent.yaml"), &node); err != nil {
		t.Fatal(err)
	}
	if node.ServerAddress != writd.IssuerListen || node.SyncInterval != agent.Default().SyncInterval {
		t.Errorf("agent %+v", node)
	}
	for i := range u.mesh.Services {
		s := &u.mesh.Services[i]
		got := proxy.Default()
		if _, err := strictyaml.Load(u.sidecarConfig(s.Name), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(u.sidecar(s), got); diff != "" {
			t.Errorf("sidecar of %s (-written +read):\n%s", s.Name, diff)
		}
	}
}

func TestCatalogue(t *testing.T) {
	data, err := json.Marshal(catalogue(parseMesh(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"me":{"spiffe_ids":["spiffe://example.org/svc/me"],"mode":"enforce","path":"strict"},` +
		`"pay":{"spiffe_ids":["spiffe://example.org/svc/pay"],"mode":"enforce","path":"strict"},` +
		`"shop":{"spiffe_ids":["spiffe://example.org/svc/shop"],"mode":"observe","observe_until":"2030-01-31T00:00:00Z","path":"strict"},` +
		`"web":{"spiffe_ids":["spiffe://example.org/svc/web"],"mode":"enforce","path":"strict"}}`
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Errorf("catalogue (-want +got):\n%s", diff)
	}
}

// What goes out is what the mesh file says, byte for byte.
func TestDriveHTTP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type heard struct {
		head string
		port int
	}
	got := make(chan heard, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 4096)
		n, _ := io.ReadAtLeast(conn, buf, 1)
		for !bytes.Contains(buf[:n], []byte("\r\n\r\n")) {
			m, err := conn.Read(buf[n:])
			if err != nil {
				break
			}
			n += m
		}
		got <- heard{string(buf[:n]), conn.RemoteAddr().(*net.TCPAddr).Port}
		fmt.Fprint(conn, "HTTP/1.1 403 Forbidden\r\nWrit-Decision-Id: abc\r\nContent-Length: 2\r\n\r\nno")
	}()
	c := &call{addr: ln.Addr().String(), Request: mesh.Request{Target: "shop", Method: "PUT", Path: "//a/%2e%2e/b?c=d&&", Headers: map[string]string{"x-b": "2", "X-A": "1"}}}
	o := c.do(t.Context(), mesh.HTTP)
	h := <-got
	want := "PUT //a/%2e%2e/b?c=d&& HTTP/1.1\r\nHost: shop\r\nUser-Agent: policyctl\r\nX-A: 1\r\nx-b: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	if diff := cmp.Diff(want, h.head); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if o.status != 403 || o.decision != "abc" || o.err != nil || !o.ports[h.port] {
		t.Errorf("outcome %+v, port %d", o, h.port)
	}
}

func TestDriveNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	for _, protocol := range []string{mesh.HTTP, mesh.GRPC} {
		c := &call{addr: addr, Request: mesh.Request{Target: "shop", Method: "GET", Path: "/a.B/C"}}
		if o := c.do(t.Context(), protocol); o.status != -1 || o.err == nil || o.decision != "" {
			t.Errorf("%s: %+v", protocol, o)
		}
	}
}

// The shop's payments take an empty message, as up drives it.
func TestDriveGRPC(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- servePayments(ctx, ln) }()
	for path, want := range map[string]int{"/shop.payments.v1.Payments/Charge": 0, "/shop.payments.v1.Payments/Steal": -1} {
		c := &call{addr: ln.Addr().String(), Request: mesh.Request{Target: "payments", Method: "POST", Path: path}}
		if o := c.do(ctx, mesh.GRPC); o.status != want {
			t.Errorf("%s: %+v", path, o)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProcessStart(t *testing.T) {
	start := processStart()
	if d := time.Since(start); d < 0 || d > time.Hour {
		t.Errorf("this process began %s ago", d)
	}
	if again := processStart(); again.Sub(start).Abs() > 50*time.Millisecond {
		t.Errorf("began at %s, or at %s", start, again)
	}
}

func TestBehind(t *testing.T) {
	u := &upRun{mesh: parseMesh(t)}
	rev := &policyv1.Revision{Epoch: 1, Number: 4}
	component := func(name string, number uint64) *policyv1.Component {
		return &policyv1.Component{
			Kind: "sidecar", Name: name, SpiffeId: "spiffe://example.org/svc/" + name, Connected: true,
			Revision: &policyv1.Revision{Epoch: 1, Number: number},
		}
	}
	resp := &policyv1.StatusResponse{Components: []*policyv1.Component{component("web", 4), component("shop", 3), component("pay", 5), component("me", 4)}}
	missing, err := u.behind(resp, rev)
	if diff := cmp.Diff([]string{"shop"}, missing); diff != "" || err != nil {
		t.Errorf("behind (-want +got):\n%s%v", diff, err)
	}
	resp.Components[0].Connected = false
	resp.Components[1] = component("shop", 4)
	if missing, err = u.behind(resp, rev); cmp.Diff([]string{"web"}, missing) != "" || err != nil {
		t.Errorf("one is gone: %v, %v", missing, err)
	}
	resp.Components[2].Refused = "unknown key"
	if _, err = u.behind(resp, rev); err == nil || err.Error() != "the sidecar of pay refused the policy: unknown key" {
		t.Errorf("one refused: %v", err)
	}
}

func TestConcluded(t *testing.T) {
	broken := errors.New("the port is taken")
	fine := &upResult{Services: []serviceResult{}, Requests: []requestResult{}, OK: true}
	if r, err := concluded(fine, nil); r != fine || err != nil || !r.OK || r.Error != "" {
		t.Errorf("success: %+v, %v", r, err)
	}
	if r, err := concluded(fine, broken); !errors.Is(err, broken) || r.OK || r.Error != broken.Error() {
		t.Errorf("broken at the end: %+v, %v", r, err)
	}
	if r, err := concluded(nil, broken); !errors.Is(err, broken) || r.OK || r.Error != broken.Error() {
		t.Errorf("broken early: %+v, %v", r, err)
	}
	if r, err := concluded(nil, nil); err == nil || r.OK || r.Error != err.Error() {
		t.Errorf("stopped: %+v, %v", r, err)
	}
	wrong := &upResult{Requests: []requestResult{{Verdict: "deny", Expected: "allow"}}}
	if r, err := concluded(wrong, nil); err == nil || r.Error != "1 of 1 verdicts were not as expected" {
		t.Errorf("wrong: %+v, %v", r, err)
	}
}

// TestUpAllowOutside: policy that every sidecar would refuse is not pushed, and
// what the mesh file allows reaches the sidecars.
func TestUpAllowOutside(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "writ", "outside"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "writ", "outside", "data.json"), []byte(`{"opa.runtime": {}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, allow := range []bool{false, true} {
		m, err := mesh.Parse("m", fmt.Appendf(nil, "{trust_domain: example.org, policy: p, allow_outside: %v, services: [{name: pay, address: '127.0.0.1:1'}]}", allow))
		if err != nil {
			t.Fatal(err)
		}
		m.Policy = dir
		u := &upRun{dir: upDir(t.TempDir()), mesh: m}
		if u.ports, err = assignPorts(u.mesh, u.dir.path("ports.json")); err != nil {
			t.Fatal(err)
		}
		_, err = u.policySources()
		var refused policy.Refused
		if errors.As(err, &refused) == allow || !allow && !strings.Contains(err.Error(), "data.json:1:1: catalogue: the sidecars would refuse") {
			t.Errorf("allow_outside %v: %v", allow, err)
		}
		if c := u.sidecar(m.Service("pay")); c.Policy.AllowOutside != allow {
			t.Errorf("the sidecar has allow_outside %v, want %v", c.Policy.AllowOutside, allow)
		}
	}
}

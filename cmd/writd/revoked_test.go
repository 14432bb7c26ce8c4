package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/policy/policyv1"
)

// mint signs an SVID for a path.
func (d *domain) mint(path string) *x509svid.SVID {
	d.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: d.td.Name(), Path: path}}}, key)
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := svidv1.NewSVIDClient(d.admin).MintX509SVID(d.t.Context(), &svidv1.MintX509SVIDRequest{Csr: csr})
	if err != nil {
		d.t.Fatal(err)
	}
	svid := &x509svid.SVID{PrivateKey: key}
	for _, der := range resp.Svid.CertChain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			d.t.Fatal(err)
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	if svid.ID, err = x509svid.IDFromCert(svid.Certificates[0]); err != nil {
		d.t.Fatal(err)
	}
	return svid
}

// open serves one of writd's own listeners until the test ends.
func (d *domain) open(listen func() (*listener, error)) string {
	d.t.Helper()
	l, err := listen()
	if err != nil {
		d.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = l.serve() })
	d.t.Cleanup(func() {
		l.now()
		serving.Wait()
	})
	return l.addr.String()
}

func (d *domain) dial(addr string, svid *x509svid.SVID) *grpc.ClientConn {
	d.t.Helper()
	config := tlsconfig.MTLSClientConfig(svid, d.source, tlsconfig.AuthorizeID(identity.ServerID(d.td)))
	config.MinVersion = tls.VersionTLS13
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	return conn
}

func (d *domain) revoke(svid *x509svid.SVID) {
	d.t.Helper()
	serial := &revocationv1.Revocation{Subject: &revocationv1.Revocation_Serial{Serial: svid.Certificates[0].SerialNumber.String()}}
	if _, err := revocationv1.NewAdminClient(d.admin).Revoke(d.t.Context(), &revocationv1.RevokeRequest{Revocation: serial}); err != nil {
		d.t.Fatal(err)
	}
}

// refused demands the answer to a revoked SVID, and no other's.
func refused(t *testing.T, what string, err error) {
	t.Helper()
	if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != "the SVID is revoked" {
		t.Errorf("%s with a revoked SVID: %v", what, err)
	}
}

// cutOff demands that a stream ends: its connection is closed, so that the reason
// may not arrive.
func cutOff(t *testing.T, what string, err error) {
	t.Helper()
	if status.Code(err) != codes.Unavailable {
		refused(t, what, err)
	}
}

// Both listeners of the network end the streams, and the connections, of an SVID
// that is revoked, and refuse its calls; another SVID of the same name is as good
// as before.
func TestRevokedPeers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"admin.rego":      "package admin\n\nallow contains \"all\" if input.caller.id == \"spiffe://a.test/team/ops\"\n",
		"admin_test.rego": "package admin_test\n\nimport data.admin\n\ntest_all if \"all\" in admin.allow with input as {\"caller\": {\"id\": \"spiffe://a.test/team/ops\"}}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := newDomain(t, "a.test", func(c *writdconf.Config) {
		c.ControlListen, c.AdminListen, c.AdminPolicy = "127.0.0.1:0", "127.0.0.1:0", dir
	})
	control, remote := d.open(d.listenControl), d.open(d.listenRemoteAdmin)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	// The control listener: a recorder, and a follower of policy.
	append := func(conn *grpc.ClientConn, svid *x509svid.SVID) (auditv1.Ingest_AppendClient, error) {
		t.Helper()
		stream, err := auditv1.NewIngestClient(conn).Append(ctx)
		if err != nil {
			t.Fatal(err)
		}
		instance := uuid.NewString()
		start := audit.ChainStart(audit.Stream{SPIFFEID: svid.ID.String(), Instance: instance}, 1)
		_ = stream.Send(&auditv1.AppendRequest{Kind: &auditv1.AppendRequest_Hello{Hello: &auditv1.Hello{Instance: instance, Epoch: 1, First: 1, Chain: start[:]}}})
		_, err = stream.Recv()
		return stream, err
	}
	follow := func(conn *grpc.ClientConn) policyv1.Distribution_WatchClient {
		t.Helper()
		stream, err := policyv1.NewDistributionClient(conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&policyv1.WatchRequest{Report: &policyv1.Report{Service: "web"}})
		return stream
	}
	thief, owner := d.mint("/svc/web"), d.mint("/svc/web")
	stolen, own := d.dial(control, thief), d.dial(control, owner)
	recording, err := append(stolen, thief)
	if err != nil {
		t.Fatal(err)
	}
	following := follow(stolen)
	if _, err := append(own, owner); err != nil {
		t.Fatal(err)
	}
	d.revoke(thief)
	_, err = recording.Recv()
	cutOff(t, "an open stream", err)
	_, err = following.Recv()
	cutOff(t, "another open stream", err)
	if !stolen.WaitForStateChange(ctx, connectivity.Ready) {
		t.Error("the connection stays")
	}
	_, err = append(d.dial(control, thief), thief)
	cutOff(t, "a new stream", err)
	_, err = follow(d.dial(control, thief)).Recv()
	cutOff(t, "another new stream", err)
	if _, err := append(own, owner); err != nil {
		t.Errorf("the owner: %v", err)
	}

	// The admin listener: calls, and a stream.
	thief, owner = d.mint("/team/ops"), d.mint("/team/ops")
	stolen, own = d.dial(remote, thief), d.dial(remote, owner)
	if _, err := policyv1.NewStatusClient(stolen).Get(ctx, &policyv1.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	tail, err := auditv1.NewAdminClient(stolen).Tail(ctx, &auditv1.TailRequest{})
	if err == nil {
		_, err = tail.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	d.revoke(thief)
	for err = nil; err == nil; {
		_, err = tail.Recv() // what went on record meanwhile
	}
	cutOff(t, "an open stream of an administrator", err)
	_, err = policyv1.NewStatusClient(d.dial(remote, thief)).Get(ctx, &policyv1.StatusRequest{})
	refused(t, "a call", err)
	if _, err := policyv1.NewStatusClient(own).Get(ctx, &policyv1.StatusRequest{}); err != nil {
		t.Errorf("the owner: %v", err)
	}
}

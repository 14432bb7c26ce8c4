//go:build interop

package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/test/programs"
)

// writd and spire-server fetch each other's bundle, by either profile; then a
// workload of each trust domain calls one of the other by mTLS.
func TestSPIREFederation(t *testing.T) {
	for _, profile := range []string{"https_spiffe", "https_web"} {
		t.Run(profile, func(t *testing.T) {
			dir := shortDir(t)
			cert, key := webCertificate(t, dir)
			t.Setenv("SSL_CERT_FILE", cert) // the servers' roots of the web
			ours := newSide(t, dir, "writd", "writ-agent", "ours.test")
			theirs := newSide(t, dir, "spire-server", "spire-agent", "theirs.test")
			web := ""
			if profile == "https_web" {
				web = fmt.Sprintf("  cert_file: %s\n  key_file: %s\n", cert, key)
			}
			ours.conf.More = fmt.Sprintf("federation:\n  listen: 127.0.0.1:%d\n  profile: %s\n%s", ours.endpoint, profile, web)
			block := `profile "https_spiffe" {}`
			if profile == "https_web" {
				block = fmt.Sprintf("profile \"https_web\" { serving_cert_file { cert_file_path = %q key_file_path = %q file_sync_interval = \"1h\" } }", cert, key)
			}
			theirs.conf.MoreServer = fmt.Sprintf("\tfederation { bundle_endpoint { address = \"127.0.0.1\" port = %d %s } }\n", theirs.endpoint, block)
			ours.start(t, programs.StartWritd)
			theirs.start(t, programs.StartSPIRE)
			ours.federate(t, theirs, profile)
			theirs.federate(t, ours, profile)
			ours.join(t, theirs.td)
			theirs.join(t, ours.td)
			crossCall(t, ours, theirs)
			crossCall(t, theirs, ours)
			ours.conforms(t, profile, cert)
			theirs.conforms(t, profile, cert)
		})
	}
}

// side is one trust domain: a server, an agent, and this process as workload.
type side struct {
	dir, agentName string
	td             spiffeid.TrustDomain
	conf           programs.ServerConfig
	endpoint       int
	downstream     bool // the workload is an issuer below, and does not federate
	server         *programs.Server
	source         *workloadapi.X509Source
}

func newSide(t *testing.T, dir, server, agent, td string) *side {
	t.Helper()
	ports, err := programs.FreePorts(3)
	check(t, err)
	return &side{
		dir: filepath.Join(dir, td), agentName: agent, td: spiffeid.RequireTrustDomainFromString(td), endpoint: ports[2],
		conf: programs.ServerConfig{Path: program(t, server), Dir: filepath.Join(dir, td, "s"), TrustDomain: td, IssuerPort: ports[0], ControlPort: ports[1]},
	}
}

func (s *side) start(t *testing.T, start func(context.Context, programs.ServerConfig) (*programs.Server, error)) {
	t.Helper()
	var err error
	s.server, err = start(bounded(t, time.Minute), s.conf)
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", s.conf.Path, s.server.Tail())
		}
		_ = s.server.Stop()
	})
}

func (s *side) workloadID() spiffeid.ID { return spiffeid.RequireFromPath(s.td, "/svc/web") }

// federate has the server fetch the other's bundle, which it does not know but
// for what it is told with https_spiffe.
func (s *side) federate(t *testing.T, other *side, profile string) {
	t.Helper()
	ctx := bounded(t, time.Minute)
	r := &types.FederationRelationship{
		TrustDomain: other.td.Name(), BundleEndpointUrl: fmt.Sprintf("https://localhost:%d/", other.endpoint),
		BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
	}
	if profile == "https_spiffe" {
		bundle, err := bundlev1.NewBundleClient(other.server.Admin()).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		check(t, err)
		r.TrustDomainBundle = bundle
		r.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: other.td.IDString() + "/spire/server"}}
	}
	client := trustdomainv1.NewTrustDomainClient(s.server.Admin())
	made, err := client.BatchCreateFederationRelationship(ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: []*types.FederationRelationship{r}})
	check(t, err)
	if st := made.GetResults()[0].GetStatus(); codes.Code(st.GetCode()) != codes.OK {
		t.Fatalf("%s: create the relationship: %s", s.td, st.GetMessage())
	}
	check(t, s.server.Until(ctx, func() error {
		_, err := client.RefreshBundle(ctx, &trustdomainv1.RefreshBundleRequest{TrustDomain: other.td.Name()})
		return err
	}))
}

// join gives the workload an identity that federates.
func (s *side) join(t *testing.T, with spiffeid.TrustDomain) {
	t.Helper()
	ctx := bounded(t, 2*time.Minute)
	alias := spiffeid.RequireFromPath(s.td, "/node/one")
	entry, err := s.server.Entry(alias, "/svc/web", fmt.Sprintf("unix:uid:%d", os.Getuid()))
	check(t, err)
	if entry.Downstream = s.downstream; !s.downstream {
		entry.FederatesWith = []string{with.Name()}
	}
	_, err = s.server.CreateEntries(ctx, entry)
	check(t, err)
	token, err := s.server.JoinToken(ctx, alias)
	check(t, err)
	dir := filepath.Join(s.dir, "a")
	check(t, os.MkdirAll(dir, 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "bundle.pem"), bundlePEM(t, s.server), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600))
	socket, conf := filepath.Join(dir, "run", "api.sock"), filepath.Join(dir, "agent.conf")
	c := programs.Config{Path: program(t, s.agentName), Log: filepath.Join(dir, "log"), Args: []string{"--config", conf}}
	content := fmt.Sprintf(writAgentConf, dir, s.conf.IssuerPort, socket, s.td.Name())
	if s.agentName == "spire-agent" {
		c.Args = []string{"run", "-config", conf}
		content = fmt.Sprintf(spireAgentConf, dir, s.conf.IssuerPort, socket, s.td.Name(), token)
	}
	check(t, os.WriteFile(conf, []byte(content), 0o600))
	agent, err := programs.Start(c)
	check(t, err)
	t.Cleanup(func() {
		_ = agent.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", s.agentName, agent.Tail())
		}
	})
	check(t, agent.Reachable(ctx, "unix", socket))
	s.source, err = workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+socket)))
	check(t, err)
	t.Cleanup(func() { s.source.Close() })
	untilUpdated(t, s.source, func() error {
		_, err := s.source.GetX509BundleForTrustDomain(with)
		return err
	})
}

// conforms runs the conformance suite at the bundle endpoint, and at the Workload
// API beside it.
func (s *side) conforms(t *testing.T, profile, web string) {
	t.Helper()
	args := []string{"run", "./spiffe-conformance", "--socket", "unix://" + filepath.Join(s.dir, "a", "run", "api.sock"),
		"--bundle-endpoint", fmt.Sprintf("https://localhost:%d/", s.endpoint), "--profile", profile}
	if profile == "https_web" {
		args = append(args, "--roots", web)
	} else {
		args = append(args, "--endpoint-id", s.td.IDString()+"/spire/server")
	}
	out, err := exec.CommandContext(bounded(t, 2*time.Minute), "go", args...).CombinedOutput()
	if err != nil {
		t.Errorf("the conformance suite at %s: %v\n%s", s.td, err, out)
	}
	if !strings.Contains(string(out), "bundle-workload") {
		t.Errorf("the conformance suite at %s printed no table:\n%s", s.td, out)
	}
}

// crossCall has the workload of from call that of to.
func crossCall(t *testing.T, from, to *side) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(tls.NewListener(l, tlsconfig.MTLSServerConfig(to.source, to.source, tlsconfig.AuthorizeID(from.workloadID()))))
	}()
	defer func() { _ = server.Close(); <-done }()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: tlsconfig.MTLSClientConfig(from.source, from.source, tlsconfig.AuthorizeID(to.workloadID())),
	}}
	if err := call(client, "https://"+l.Addr().String()); err != nil {
		t.Errorf("%s calls %s: %v", from.workloadID(), to.workloadID(), err)
	}
}

// webCertificate is a self-signed certificate of localhost, as Web PKI has it.
func webCertificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	check(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	check(t, err)
	cert, key = filepath.Join(dir, "web.pem"), filepath.Join(dir, "web.key")
	check(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	check(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return cert, key
}

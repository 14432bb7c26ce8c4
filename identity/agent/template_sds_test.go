package agent_test

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/agent/agenttest"
)

// An Envoy whom only a template names: it gets the certificate that is made for it, the
// next one when the pattern changes, and with the template it loses what it has.
func TestTemplateToEnvoy(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	made := r.Template("/user/{unix:user}", "/node/n1")
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	cc, err := grpc.NewClient(n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer cc.Close()
	envoy, err := secretv3.NewSecretDiscoveryServiceClient(cc).StreamSecrets(t.Context())
	must(t, err)
	must(t, envoy.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}))
	// next is the certificate of the next response, which is acknowledged.
	next := func() *x509.Certificate {
		t.Helper()
		resp, err := envoy.Recv()
		must(t, err)
		// Where the stream has ended since, that is what is read next.
		_ = envoy.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}, ResponseNonce: resp.Nonce, VersionInfo: resp.VersionInfo})
		var secret tlsv3.Secret
		if len(resp.Resources) != 1 {
			t.Fatalf("%d resources", len(resp.Resources))
		}
		must(t, resp.Resources[0].UnmarshalTo(&secret))
		block, _ := pem.Decode(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
		cert, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
		return cert
	}
	named := func(path string) {
		t.Helper()
		for {
			cert := next()
			if len(cert.URIs) != 1 {
				t.Fatalf("got %v on the way to %s", cert.URIs, path)
			}
			if cert.URIs[0].Path == path {
				return
			}
		}
	}
	named("/user/" + me(t))
	if s := n.agent.Status(); s.Instances != 1 || s.InstanceSVIDs != 1 {
		t.Errorf("with one Envoy: %+v", s)
	}
	made.SpiffeId, made.Revision = "spiffe://example.org/person/{unix:user}", 0
	made = r.UpdateTemplate(made)
	named("/person/" + me(t))
	r.DeleteTemplate(made.Id)
	if cert := next(); len(cert.URIs) != 0 {
		t.Errorf("the certificate is not taken away: Envoy has %v", cert.URIs)
	}
	if _, err := envoy.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream ends with %v", err)
	}
}

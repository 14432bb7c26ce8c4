package sds

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/workload"
)

// Whatever an Envoy sends in a stream: it gets secrets that are its caller's, an
// answer for each request at most, and no failure of the agent.
func FuzzStream(f *testing.F) {
	ca, other := newAuthority(own), newAuthority("other.org")
	grant := workload.Grant{Identities: []*workload.Identity{ca.identity(1, web)}, Bundle: ca.bundle, Federated: []*workload.Bundle{other.bundle}}
	_, _, client := serve(f, grant, Config{Names: DefaultNames()})
	add := func(requests ...*discoveryv3.DiscoveryRequest) {
		var b bytes.Buffer
		for _, r := range requests {
			_, _ = protodelim.MarshalTo(&b, r) // a Buffer takes everything
		}
		f.Add(b.Bytes())
	}
	ask := func(node uint32, nonce string, names ...string) *discoveryv3.DiscoveryRequest {
		return &discoveryv3.DiscoveryRequest{Node: envoy(node), ResponseNonce: nonce, ResourceNames: names, TypeUrl: secretType}
	}
	add(ask(30, "", "default", "ALL"), ask(0, "1", "default", "ALL"), ask(0, "1"), ask(0, "99", web))
	add(ask(10, "", "ROOTCA"), &discoveryv3.DiscoveryRequest{ResponseNonce: "1", ErrorDetail: &status.Status{Message: strings.Repeat("x", 100)}})
	add(ask(30, ""), ask(30, "1", "spiffe://other.org", "spiffe://example.org"), ask(30, "2", api))
	add(&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"})
	add(&discoveryv3.DiscoveryRequest{}, &discoveryv3.DiscoveryRequest{}, &discoveryv3.DiscoveryRequest{ResourceNames: []string{"", "default", "default"}})
	mine := map[string]bool{"default": true, "ALL": true, "ROOTCA": true, web: true, "spiffe://example.org": true, "spiffe://other.org": true}
	f.Fuzz(func(t *testing.T, data []byte) {
		stream, err := client.StreamSecrets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for r := bytes.NewReader(data); ; sent++ {
			req := &discoveryv3.DiscoveryRequest{}
			if protodelim.UnmarshalFrom(r, req) != nil || stream.Send(req) != nil {
				break
			}
		}
		_ = stream.CloseSend()
		for answers := 0; ; answers++ {
			resp, err := stream.Recv()
			if err != nil {
				switch code := grpcstatus.Code(err); {
				case errors.Is(err, io.EOF), code == codes.InvalidArgument:
				default:
					t.Fatalf("%s: %v", code, err)
				}
				return
			}
			if answers > sent {
				t.Fatalf("%d answers to %d requests", answers, sent)
			}
			for _, packed := range resp.Resources {
				var secret tlsv3.Secret
				if err := packed.UnmarshalTo(&secret); err != nil {
					t.Fatal(err)
				}
				if !mine[secret.Name] {
					t.Errorf("%q is nobody's", secret.Name)
				}
				if proto.Size(secret.GetTlsCertificate()) > 0 && secret.Name != web && secret.Name != "default" {
					t.Errorf("a key under %q", secret.Name)
				}
			}
		}
	})
}

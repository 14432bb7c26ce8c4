//go:build interop

package interop

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/test/programs"
)

// One issuer below the other, in either order: what the lower one signs is
// verified with the upper one's bundle.
func TestSPIRENested(t *testing.T) {
	for _, tt := range []struct {
		name       string
		upper      *side
		lower      string
		start      func(context.Context, programs.ServerConfig) (*programs.Server, error)
		startLower func(context.Context, programs.ServerConfig) (*programs.Server, error)
	}{
		{"writd below spire-server", newSide(t, shortDir(t), "spire-server", "spire-agent", domain), "writd", programs.StartSPIRE, programs.StartWritd},
		{"spire-server below writd", newSide(t, shortDir(t), "writd", "writ-agent", domain), "spire-server", programs.StartWritd, programs.StartSPIRE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.upper.start(t, tt.start)
			tt.upper.downstream = true
			tt.upper.join(t, tt.upper.td)
			lower := newSide(t, shortDir(t), tt.lower, "", domain)
			socket, port := tt.upper.socket(), tt.upper.conf.IssuerPort
			lower.conf.More = fmt.Sprintf("upstream:\n  spire:\n    server_address: 127.0.0.1:%d\n    workload_api: unix://%s\n", port, socket)
			lower.conf.MorePlugins = fmt.Sprintf("\tUpstreamAuthority \"spire\" { plugin_data { server_address = \"127.0.0.1\" server_port = \"%d\" workload_api_socket = %q } }\n", port, socket)
			lower.start(t, tt.startLower)
			lower.signsFor(t, tt.upper)
		})
	}
}

func (s *side) socket() string { return filepath.Join(s.dir, "a", "run", "api.sock") }

// signsFor has an agent of this server get an SVID, and verifies it with what
// the upper server trusts.
func (s *side) signsFor(t *testing.T, upper *side) {
	t.Helper()
	ctx := bounded(t, time.Minute)
	alias := idOf(fmt.Sprintf("spiffe://%s/node/low", domain))
	token, err := s.server.JoinToken(ctx, alias)
	check(t, err)
	node, err := s.server.Attest(ctx, token)
	check(t, err)
	entry, err := s.server.Entry(alias, "/svc/low", fmt.Sprintf("unix:uid:%d", os.Getuid()))
	check(t, err)
	made, err := s.server.CreateEntries(ctx, entry)
	check(t, err)
	var svid *x509svid.SVID
	check(t, s.server.Until(ctx, func() error { // spire-server caches entries for seconds
		svid, err = node.Sign(ctx, made[0])
		return err
	}))
	if len(svid.Certificates) < 2 {
		t.Errorf("the chain has %d certificates, want the lower authority too", len(svid.Certificates))
	}
	bundle, err := upper.server.Bundle(ctx)
	check(t, err)
	if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
		t.Errorf("with the upper server's bundle: %v", err)
	}
	own, err := s.server.Bundle(ctx)
	check(t, err)
	if !subset(bundle, own) {
		t.Error("the lower server's bundle lacks an authority of the upper one's")
	}
}

func subset(part, whole *x509bundle.Bundle) bool {
	for _, a := range part.X509Authorities() {
		if !whole.HasX509Authority(a) {
			return false
		}
	}
	return true
}

package issuer_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/sqldb"
)

// handshake connects and completes the handshake on both sides: a client of
// TLS 1.3 learns of the server's refusal by its first read only.
func handshake(w *world, config *tls.Config) (tls.ConnectionState, error) {
	raw, err := net.Dial("tcp", w.addr)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer raw.Close()
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	_, err = conn.Read(make([]byte, 9)) // the server's SETTINGS frame
	return conn.ConnectionState(), err
}

func TestListener(t *testing.T) {
	w := newWorld(t)
	state, err := handshake(w, w.clientTLS(nil))
	must(t, err)
	if state.NegotiatedProtocol != "h2" || state.Version < tls.VersionTLS12 {
		t.Errorf("negotiated %q, version %x", state.NegotiatedProtocol, state.Version)
	}
	// go-spiffe's client accepts the server as what stock agents demand.
	bundle, _ := w.issuer.Bundle()
	stock := tlsconfig.TLSClientConfig(bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/spire/server")))
	stock.NextProtos = []string{"h2"}
	_, err = handshake(w, stock)
	must(t, err)

	old := w.clientTLS(nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := handshake(w, old); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		resume := w.clientTLS(nil)
		resume.MinVersion, resume.MaxVersion = version, version
		resume.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		for range 2 {
			state, err := handshake(w, resume)
			must(t, err)
			if state.DidResume {
				t.Errorf("a session of version %x was resumed", version)
			}
		}
	}
	// A certificate of someone else's trust domain does not get in.
	stranger := newWorld(t)
	foreign := w.clientTLS(stranger.join(stranger.token("")))
	if _, err := handshake(w, foreign); err == nil {
		t.Error("a foreign certificate was accepted")
	}
	a := w.join(w.token(""))
	if _, err := handshake(w, w.clientTLS(a)); err != nil {
		t.Error(err)
	}
	w.clock.advance(2 * time.Hour)
	if _, err := handshake(w, w.clientTLS(a)); err == nil {
		t.Error("an expired SVID was accepted")
	}
	// The server's own SVID was made anew.
	state, err = handshake(w, w.clientTLS(nil))
	must(t, err)
	if leaf := state.PeerCertificates[0]; !w.clock.now().Before(leaf.NotAfter) {
		t.Error("the server shows an expired SVID")
	}
}

func TestSelfSource(t *testing.T) {
	w := newWorld(t)
	var source identity.Source
	source, err := w.issuer.SelfSource(identity.ServerID(td))
	must(t, err)
	defer source.Close()
	first, err := source.GetX509SVID()
	must(t, err)
	if first.ID.String() != "spiffe://example.org/writ/server" {
		t.Errorf("ID %s", first.ID)
	}
	bundle, err := source.GetX509BundleForTrustDomain(td)
	must(t, err)
	if len(bundle.X509Authorities()) != 1 {
		t.Errorf("%d authorities", len(bundle.X509Authorities()))
	}
	if _, err := source.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.org")); err == nil {
		t.Error("a bundle of another trust domain")
	}
	if again, _ := source.GetX509SVID(); again != first {
		t.Error("a new SVID before half life")
	}
	// Half of an SVID's life later there is a new one; with a new bundle the
	// reader is told.
	w.clock.advance(12 * time.Hour)
	must(t, w.ca.Rotate(t.Context()))
	<-source.Updated()
	second, err := source.GetX509SVID()
	must(t, err)
	if second == first || !w.clock.now().Before(second.Certificates[0].NotAfter) {
		t.Error("the SVID was not renewed")
	}
	bundle, err = source.GetX509BundleForTrustDomain(td)
	must(t, err)
	if len(bundle.X509Authorities()) != 2 {
		t.Errorf("%d authorities after rotation", len(bundle.X509Authorities()))
	}
	// Off the record nothing is signed: the old one serves while it lasts.
	w.refuseActs(func(identity.Act) bool { return true })
	w.clock.advance(40 * time.Minute)
	if kept, err := source.GetX509SVID(); err != nil || kept != second {
		t.Errorf("kept %v, %v", kept, err)
	}
	w.clock.advance(time.Hour)
	if _, err := source.GetX509SVID(); err == nil {
		t.Error("an expired SVID was handed out")
	}
	w.refuseActs(nil)
	must(t, source.Close())
}

// A restart keeps authorities, agents, entries and what was used up.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	var a *agent
	var token string
	var pem []byte
	for round := range 2 {
		func() {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			store, err := keys.OpenDisk(filepath.Join(dir, "keys"))
			must(t, err)
			db, err := sqldb.OpenSQLite(ctx, filepath.Join(dir, "writ.db"))
			must(t, err)
			defer db.Close()
			w := &world{t: t, clock: &clock{}, keys: store}
			w.store, err = sqlstore.Open(ctx, db, w.storeConfig(dir))
			must(t, err)
			w.ca, err = ca.Open(ctx, ca.Config{TrustDomain: td, Keys: store, Journal: w.store, Emit: w.emit})
			must(t, err)
			w.issuer, err = issuer.New(issuer.Config{TrustDomain: td, Store: w.store, CA: w.ca, Emit: w.emit, AttestPerSecond: 1e6, AttestBurst: 1e6})
			must(t, err)
			done := w.serve()
			defer done()
			bundle, _ := w.issuer.Bundle()
			if round == 0 {
				token = w.token("/node/a")
				w.create(entry("/svc/web", "/node/a", "uid:1"))
				a = w.join(token)
				pem = bundle.PEM()
				return
			}
			if string(bundle.PEM()) != string(pem) {
				t.Error("the bundle changed")
			}
			again := &agent{w: w, id: a.id, key: a.key, cert: a.cert}
			again.conn = w.dial(again)
			defer again.conn.Close()
			_, err = again.agents().PostStatus(t.Context(), &agentv1.PostStatusRequest{})
			must(t, err)
			known := synced{}
			if n := known.sync(t, again); n != 2 {
				t.Errorf("%d entries, want the alias and the service", n)
			}
			if _, err := w.tryJoin(token); err == nil {
				t.Error("the token works again")
			}
			if len(w.did("token", "reused")) != 1 {
				t.Error("no alarm")
			}
		}()
	}
}

// PEM of the bundle is what go-spiffe and openssl read.
func TestBundlePEM(t *testing.T) {
	w := newWorld(t)
	b, _ := w.issuer.Bundle()
	parsed, err := x509bundle.Parse(td, b.PEM())
	must(t, err)
	if !parsed.Equal(b.X509()) {
		t.Error("the PEM form is another bundle")
	}
	if ok := x509.NewCertPool().AppendCertsFromPEM(b.PEM()); !ok {
		t.Error("crypto/x509 does not read it")
	}
}

package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/mtls"
)

// partners admits what policy says of callers by their trust domain.
func partners(serviceID string) *policy.Snapshot {
	return peptest.Snapshot(1, "orders", serviceID, peptest.Decide(func(in *policy.Input, out *policy.Decision) {
		out.Verdict, out.Tier, out.Reason = policy.Deny, policy.DefaultDeny, "no rule"
		if in.Layer == policy.LayerConnection || in.Source.TrustDomain == "partner.test" && in.Source.Path == "/svc/web" {
			out.Verdict, out.Tier, out.Reason = policy.Allow, policy.ServiceAllow, "partner"
		}
	}))
}

// Whoever is of another trust domain gets in when the Workload API gives the
// bundle of that one, is decided on under that name, and is put out when the
// bundle goes.
func TestForeignTrustDomain(t *testing.T) {
	ours, theirs := testpki.New(t, "example.org"), testpki.New(t, "partner.test")
	source := testpki.NewSource(ours.SVID(t, "/svc/orders", time.Hour), ours.Bundle())
	s := startWith(t, source, serverConfig(app(t, echo())))
	s.SetSnapshot(partners(serverID))
	ask := func(svid *x509svid.SVID) (status int, c *tls.Conn, r *bufio.Reader, err error) {
		t.Helper()
		if c, err = dial(t, s.InboundAddr(), svid, mtls.HTTP1); err != nil {
			return 0, nil, nil, err
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		r = bufio.NewReader(c)
		if _, err := r.Peek(1); err != nil {
			return 0, nil, nil, err
		}
		res, _ := readResponse(t, r)
		return res.StatusCode, c, r, nil
	}
	web := theirs.SVID(t, "/svc/web", time.Hour)
	if _, _, _, err := ask(web); err == nil {
		t.Fatal("admitted without a bundle")
	}
	source.SetBundles(ours.Bundle(), theirs.Bundle())
	status, open, reader, err := ask(web)
	if err != nil || status != 200 {
		t.Fatalf("with the bundle: %d, %v", status, err)
	}
	// Ours of the same path is another, and so is another of theirs.
	for name, svid := range map[string]*x509svid.SVID{"ours": ours.SVID(t, "/svc/web", time.Hour), "another path": theirs.SVID(t, "/svc/other", time.Hour)} {
		if status, _, _, err := ask(svid); err != nil || status != 403 {
			t.Errorf("%s: %d, %v", name, status, err)
		}
	}
	claim := func(id string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			u, err := url.Parse(id)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = []*url.URL{u}
		}
	}
	// Bundles are never merged: nobody speaks as somebody of the other.
	for name, svid := range map[string]*x509svid.SVID{
		"theirs as ours": theirs.SVID(t, "/svc/web", time.Hour, claim("spiffe://example.org/svc/web")),
		"ours as theirs": ours.SVID(t, "/svc/web", time.Hour, claim("spiffe://partner.test/svc/web")),
		"a third":        testpki.New(t, "third.test").SVID(t, "/svc/web", time.Hour),
	} {
		if _, _, _, err := ask(svid); err == nil {
			t.Errorf("%s was admitted", name)
		}
	}
	var reasons []string
	for _, ev := range s.rec.Events() {
		switch {
		case ev.Outcome == auditv1.Outcome_OUTCOME_REFUSED:
			reasons = append(reasons, ev.Reason)
		case ev.Decision != nil && ev.Decision.Verdict == policy.Allow:
			if ev.Input.Source.ID != "spiffe://partner.test/svc/web" || ev.Input.Source.TrustDomain != "partner.test" || ev.Input.Source.Authn != policy.AuthnMTLS {
				t.Errorf("allowed source %+v", ev.Input.Source)
			}
		}
	}
	if len(reasons) != 4 || !strings.Contains(strings.Join(reasons, "\n"), "partner.test/svc/web, of a foreign trust domain that this workload does not federate with") ||
		!strings.Contains(strings.Join(reasons, "\n"), "the X509-SVID that claims spiffe://partner.test/svc/web is not signed by the trust bundle") {
		t.Errorf("refused for %q", reasons)
	}

	source.SetBundles(ours.Bundle())
	if _, err := reader.ReadByte(); err == nil {
		t.Error("a connection outlived its bundle")
	}
	open.Close()
	if _, err := s.rec.Wait(t.Context(), func(ev peptest.Event) bool {
		return ev.Input != nil && ev.Input.Source.TrustDomain == "partner.test" && strings.HasPrefix(ev.Reason, "open connection ended: ") && strings.Contains(ev.Reason, "does not federate with")
	}); err != nil {
		t.Error(err)
	}
}

// A pair across two trust domains: the caller's sidecar demands the ID of the
// other trust domain and verifies it by that one's bundle.
func TestPairAcrossTrustDomains(t *testing.T) {
	ours, theirs := testpki.New(t, "partner.test"), testpki.New(t, "example.org")
	srv := startWith(t, testpki.NewSource(theirs.SVID(t, "/svc/orders", time.Hour), theirs.Bundle(), ours.Bundle()), serverConfig(app(t, echo())))
	srv.SetSnapshot(partners(serverID))
	source := testpki.NewSource(ours.SVID(t, "/svc/web", time.Hour), ours.Bundle(), theirs.Bundle())
	cli := startWith(t, source, clientConfig(srv, "http"), func(o *Options) { o.Config.TrustDomain = "partner.test" })
	to := "http://" + cli.UpstreamAddr("orders").String() + "/x"
	if status, body, _ := get(t, newClient(t), to); status != 200 || body != "GET /x " {
		t.Fatalf("%d %q", status, body)
	}
	// Without their bundle nobody of theirs is called.
	bare := startWith(t, testpki.NewSource(ours.SVID(t, "/svc/web", time.Hour), ours.Bundle()), clientConfig(srv, "http"), func(o *Options) { o.Config.TrustDomain = "partner.test" })
	if status, _, _ := get(t, newClient(t), "http://"+bare.UpstreamAddr("orders").String()+"/x"); status != 502 {
		t.Errorf("without the bundle: %d", status)
	}
	if len(bare.rec.Events()) != 1 || bare.rec.Events()[0].Outcome != auditv1.Outcome_OUTCOME_REFUSED {
		t.Errorf("recorded %+v", bare.rec.Events())
	}
}

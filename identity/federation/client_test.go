package federation_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/testpki"
)

// endpoint is a web server with a certificate.
func endpoint(t testing.TB, config *tls.Config, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.TLS = config
	s.Config.ErrorLog = log.New(new(strings.Builder), "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// roots are those of the partner's endpoint; others have the system's.
func roots(s *httptest.Server) func(spiffeid.TrustDomain) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return func(td spiffeid.TrustDomain) (*x509.CertPool, error) {
		if td != partner {
			return nil, nil
		}
		return pool, nil
	}
}

func web(url string) *registry.Relationship {
	return &registry.Relationship{TrustDomain: partner, EndpointURL: url, Profile: registry.HTTPSWeb}
}

func wantCause(t testing.TB, name string, err error, want federation.Cause, text string) {
	t.Helper()
	var why *federation.Error
	if !errors.As(err, &why) || why.Cause != want || !strings.Contains(why.Reason, text) {
		t.Errorf("%s: %v (cause %v), want %s with %q", name, err, why, want, text)
	}
}

func TestFetchWeb(t *testing.T) {
	want := full(t)
	doc, err := federation.Marshal(want)
	must(t, err)
	var elsewhere *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/b", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.RawQuery != "x=1" {
			http.Error(w, "no", http.StatusBadRequest)
		}
		_, _ = w.Write(doc)
	})
	redirect := func(path, to string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		})
	}
	redirect("/moved", "/b?x=1")
	redirect("/http", "http://127.0.0.1/b")
	redirect("/file", "file:///etc/passwd")
	redirect("/user", "https://a:b@127.0.0.1/")
	redirect("/loop", "/loop")
	redirect("/nowhere", "")
	redirect("/metadata", "https://169.254.169.254/latest")
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "secret reason", http.StatusInternalServerError)
	})
	mux.HandleFunc("/garbage", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello</html>") })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, federation.MaxDocument+1)) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(doc)
	})
	s := endpoint(t, nil, mux.ServeHTTP)
	elsewhere = endpoint(t, nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(doc) })
	c := &federation.Client{Roots: roots(s)}
	for _, path := range []string{"/b?x=1", "/moved"} {
		got, err := c.Fetch(t.Context(), web(s.URL+path))
		if err != nil || !got.Equal(want) || got.TrustDomain != partner {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
	for path, tc := range map[string]struct {
		cause federation.Cause
		text  string
	}{
		"/absent":    {federation.BadStatus, "404"},
		"/broken":    {federation.BadStatus, "500 Internal Server Error"},
		"/garbage":   {federation.Garbage, "not a bundle document"},
		"/large":     {federation.TooLarge, "1048576"},
		"/cut":       {federation.Unreachable, "ends early"},
		"/http":      {federation.Redirected, `want https, got "http"`},
		"/file":      {federation.Redirected, `want https, got "file"`},
		"/user":      {federation.Redirected, "no user or password"},
		"/loop":      {federation.Redirected, "more than 3 times"},
		"/nowhere":   {federation.Redirected, "where to"},
		"/metadata":  {federation.Unreachable, "link-local"},
		"/elsewhere": {federation.Redirected, "is not public"},
	} {
		_, err := c.Fetch(t.Context(), web(s.URL+path))
		wantCause(t, path, err, tc.cause, tc.text)
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the body is told: %v", path, err)
		}
	}
	_, err = (&federation.Client{Roots: func(spiffeid.TrustDomain) (*x509.CertPool, error) { return x509.NewCertPool(), nil }}).Fetch(t.Context(), web(s.URL+"/b?x=1"))
	wantCause(t, "unknown authority", err, federation.Untrusted, "unknown authority")
	somebody := web(s.URL + "/b?x=1")
	somebody.TrustDomain = spiffeid.RequireTrustDomainFromString("somebody.test")
	_, err = c.Fetch(t.Context(), somebody)
	wantCause(t, "authorities of another relationship", err, federation.Untrusted, "unknown authority")
	unreadable := func(spiffeid.TrustDomain) (*x509.CertPool, error) { return nil, errors.New("ca.pem: gone") }
	_, err = (&federation.Client{Roots: unreadable}).Fetch(t.Context(), web(s.URL+"/b?x=1"))
	wantCause(t, "no authorities", err, federation.NoBundle, "authorities of the endpoint of partner.test: ca.pem: gone")
	_, err = (&federation.Client{Roots: roots(s), Now: func() time.Time { return time.Now().AddDate(100, 0, 0) }}).Fetch(t.Context(), web(s.URL+"/b?x=1"))
	wantCause(t, "expired", err, federation.Untrusted, "expired")
	_, err = c.Fetch(t.Context(), web("https://localhost:1/"))
	wantCause(t, "nobody there", err, federation.Unreachable, "cannot be reached")
	_, err = c.Fetch(t.Context(), web("https://169.254.169.254/"))
	wantCause(t, "metadata", err, federation.Unreachable, "link-local")
	_, err = c.Fetch(t.Context(), web("https://[::]:443/"))
	wantCause(t, "unspecified", err, federation.Unreachable, "unspecified")

	old := endpoint(t, &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, mux.ServeHTTP)
	_, err = (&federation.Client{Roots: roots(old)}).Fetch(t.Context(), web(old.URL+"/b?x=1"))
	if err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}

func TestFetchTakesAnEnd(t *testing.T) {
	hang := make(chan struct{})
	s := endpoint(t, nil, func(w http.ResponseWriter, r *http.Request) { <-hang })
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := (&federation.Client{Roots: roots(s)}).Fetch(ctx, web(s.URL))
	wantCause(t, "silent", err, federation.Unreachable, "in time")
}

func TestFetchSPIFFE(t *testing.T) {
	pki, other := testpki.New(t, partner.Name()), testpki.New(t, "other.test")
	doc, err := federation.Marshal(&registry.FederatedBundle{TrustDomain: partner, X509Authorities: pki.Bundle().X509Authorities()})
	must(t, err)
	svid := pki.SVID(t, "/spire/server", time.Hour)
	serve := func(id string, ca *testpki.CA) *httptest.Server {
		svid := svid
		if id != "" {
			svid = ca.SVID(t, id, time.Hour)
		}
		return endpoint(t, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}},
			func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/away" {
					http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
					return
				}
				_, _ = w.Write(doc)
			})
	}
	relation := func(url, id string) *registry.Relationship {
		return &registry.Relationship{TrustDomain: partner, EndpointURL: url, Profile: registry.HTTPSSPIFFE, EndpointID: spiffeid.RequireFromString(id)}
	}
	c := &federation.Client{Bundles: x509bundle.NewSet(pki.Bundle())}
	good := serve("", nil)
	for _, path := range []string{"", "/away"} {
		if b, err := c.Fetch(t.Context(), relation(good.URL+path, svid.ID.String())); err != nil || len(b.X509Authorities) != 1 {
			t.Errorf("%q: %v, %v", path, b, err)
		}
	}
	for name, tc := range map[string]struct {
		url, id string
		bundles *x509bundle.Set
		cause   federation.Cause
		text    string
	}{
		"another ID":            {serve("/somebody", pki).URL, "spiffe://partner.test/spire/server", x509bundle.NewSet(pki.Bundle()), federation.Untrusted, "proves to be spiffe://partner.test/somebody"},
		"another trust domain":  {serve("/spire/server", other).URL, "spiffe://partner.test/spire/server", x509bundle.NewSet(pki.Bundle(), other.Bundle()), federation.Untrusted, "does not verify"},
		"impostor":              {serve("/spire/server", testpki.New(t, partner.Name())).URL, "spiffe://partner.test/spire/server", x509bundle.NewSet(pki.Bundle()), federation.Untrusted, "does not verify"},
		"a web certificate":     {endpoint(t, nil, func(http.ResponseWriter, *http.Request) {}).URL, "spiffe://partner.test/spire/server", x509bundle.NewSet(pki.Bundle()), federation.Untrusted, "does not verify"},
		"no bundle yet":         {good.URL, "spiffe://partner.test/spire/server", x509bundle.NewSet(), federation.NoBundle, "no authority of partner.test"},
		"authorities revoked":   {good.URL, "spiffe://partner.test/spire/server", x509bundle.NewSet(x509bundle.New(partner)), federation.NoBundle, "no authority of partner.test"},
		"not verified by roots": {good.URL, "spiffe://other.test/spire/server", x509bundle.NewSet(other.Bundle()), federation.Untrusted, ""},
	} {
		c := &federation.Client{Bundles: tc.bundles, Roots: roots(good)}
		_, err := c.Fetch(t.Context(), relation(tc.url, tc.id))
		wantCause(t, name, err, tc.cause, tc.text)
	}
}

func TestCheckRelationship(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://partner.test/spire/server")
	for want, r := range map[string]registry.Relationship{
		"":                                    {EndpointURL: "https://a.test:8443/x?y#z", Profile: registry.HTTPSWeb},
		"bundle_endpoint_url: want https":     {EndpointURL: "http://a.test", Profile: registry.HTTPSWeb},
		"bundle_endpoint_url: no user":        {EndpointURL: "https://u@a.test", Profile: registry.HTTPSWeb},
		"bundle_endpoint_url: it names no":    {EndpointURL: "https:///x", Profile: registry.HTTPSWeb},
		"bundle_endpoint_url: not a URL":      {EndpointURL: "https://a b", Profile: registry.HTTPSWeb},
		"bundle_endpoint_profile: want":       {EndpointURL: "https://a.test"},
		"endpoint_spiffe_id: is for":          {EndpointURL: "https://a.test", Profile: registry.HTTPSWeb, EndpointID: id},
		"endpoint_spiffe_id: want the SPIFFE": {EndpointURL: "https://a.test", Profile: registry.HTTPSSPIFFE, EndpointID: partner.ID()},
	} {
		err := federation.CheckRelationship(&r)
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestHandler(t *testing.T) {
	own := full(t)
	s := httptest.NewServer(federation.Handler(func() *registry.FederatedBundle { return own }, time.Minute))
	defer s.Close()
	get := func(method, path, tag string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
		must(t, err)
		if tag != "" {
			req.Header.Set("If-None-Match", tag)
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	first := get("GET", "/", "")
	if first.StatusCode != 200 || first.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s, %v", first.Status, first.Header)
	}
	tag := first.Header.Get("ETag")
	if b, err := federation.Parse(partner, []byte(readAll(t, first))); err != nil || b.RefreshHint != time.Minute || b.Sequence != own.Sequence || len(b.JWTAuthorities) != 3 {
		t.Errorf("served %v, %v", b, err)
	}
	for want, resp := range map[int]*http.Response{
		http.StatusNotModified:      get("GET", "/bundle.json", tag),
		http.StatusOK:               get("HEAD", "/", ""),
		http.StatusMethodNotAllowed: get("POST", "/", ""),
		http.StatusNotFound:         get("GET", "/other", ""),
	} {
		if resp.StatusCode != want {
			t.Errorf("%s %s: %s, want %d", resp.Request.Method, resp.Request.URL.Path, resp.Status, want)
		}
	}
	own = full(t)
	if resp := get("GET", "/", tag); resp.StatusCode != 200 || resp.Header.Get("ETag") == tag {
		t.Errorf("another bundle is %s with tag %s", resp.Status, resp.Header.Get("ETag"))
	}
}

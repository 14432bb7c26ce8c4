package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// maxBundle is more than any bundle takes.
const maxBundle = 4 << 20

// checkEndpoint judges a bundle endpoint and the document that it serves.
func checkEndpoint(ctx context.Context, c Config, r *Report) {
	u, err := url.Parse(c.Endpoint)
	r.Say("bundle-https", err == nil && u.Scheme == "https" && u.User == nil, "%q", c.Endpoint)
	if err != nil || u.Scheme != "https" {
		return
	}
	e := &endpoint{Config: c, Report: r}
	if e.own, err = ownBundle(ctx, c); err == nil {
		err = e.configure()
	}
	if err != nil {
		r.Say("bundle-get", false, "%v", err)
		return
	}
	first, ok := e.get(ctx)
	if !ok {
		return
	}
	e.document(first)
	if second, ok := e.get(ctx); ok {
		e.compare(first, second)
	}
}

type endpoint struct {
	Config
	*Report
	own    []byte // the Workload API's bundle, nil without one
	client *http.Client
}

// ownBundle is the bundle of the Workload API, where one is asked too.
func ownBundle(ctx context.Context, c Config) ([]byte, error) {
	if c.Socket == "" {
		return nil, nil
	}
	conn, err := dial(c.Socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	w := &workload{Config: c, api: workloadpb.NewSpiffeWorkloadAPIClient(conn)}
	m, err := w.firstX509(withHeader(ctx))
	if err != nil || len(m.GetSvids()) == 0 {
		return nil, nil // the checks of the Workload API say so
	}
	return m.GetSvids()[0].GetBundle(), nil
}

// configure makes the client of the profile. What the certificate is, the
// handshake finds; it is said by name afterwards.
func (e *endpoint) configure() error {
	roots, err := e.roots()
	if err != nil {
		return err
	}
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	check := "bundle-web"
	if e.Profile == "https_spiffe" {
		check = "bundle-spiffe"
		if roots == nil || e.EndpointID == "" {
			return errors.New("https_spiffe needs --endpoint-id, and --roots or --socket")
		}
		config.InsecureSkipVerify = true // verified below, by SPIFFE ID instead of host name
		config.VerifyConnection = func(s tls.ConnectionState) error { return verifySPIFFE(s, roots, e.EndpointID) }
	}
	e.client = &http.Client{
		Timeout:   e.Timeout,
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		// A redirect would hand the trust to somebody else (Federation 7.5.1).
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the endpoint redirects") },
	}
	req, err := http.NewRequest(http.MethodGet, e.Endpoint, nil)
	if err != nil {
		return err
	}
	resp, err := e.client.Do(req)
	e.Say(check, err == nil, "%v", err)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (e *endpoint) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if e.Roots != "" {
		pem, err := os.ReadFile(e.Roots)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", e.Roots)
		}
		return pool, nil
	}
	if e.Profile == "https_web" || e.own == nil {
		return nil, nil
	}
	certs, err := x509.ParseCertificates(e.own)
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, err
}

func verifySPIFFE(s tls.ConnectionState, roots *x509.CertPool, id string) error {
	leaf := s.PeerCertificates[0]
	if !slices.Equal(uriSANs(leaf), []string{id}) {
		return fmt.Errorf("the endpoint is %q, not %s", uriSANs(leaf), id)
	}
	if leaf.IsCA {
		return errors.New("the endpoint's certificate is a CA")
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func (e *endpoint) get(ctx context.Context) ([]byte, bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Endpoint, nil)
	if err != nil {
		e.Say("bundle-get", false, "%v", err)
		return nil, false
	}
	resp, err := e.client.Do(req)
	if err != nil {
		e.Say("bundle-get", false, "%v", err)
		return nil, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBundle))
	ok := err == nil && resp.StatusCode == http.StatusOK && json.Valid(body)
	e.Say("bundle-get", ok, "%s, %v, %d bytes", resp.Status, err, len(body))
	return body, ok
}

// bundleDoc keeps numbers as they are written.
type bundleDoc struct {
	Keys     *[]map[string]any `json:"keys"`
	Sequence json.RawMessage   `json:"spiffe_sequence"`
	Hint     json.RawMessage   `json:"spiffe_refresh_hint"`
}

func (d *bundleDoc) sequence() (n int64, ok bool) { return integer(d.Sequence) }

func integer(raw json.RawMessage) (n int64, ok bool) {
	return n, len(raw) > 0 && json.Unmarshal(raw, &n) == nil
}

func (e *endpoint) document(body []byte) {
	var d bundleDoc
	err := json.Unmarshal(body, &d)
	e.Say("bundle-keys", err == nil && d.Keys != nil, "%v", err)
	if err != nil || d.Keys == nil {
		return
	}
	_, ok := d.sequence()
	e.Say("bundle-sequence", ok, "%s", d.Sequence)
	_, ok = integer(d.Hint)
	e.Say("bundle-hint", ok, "%s", d.Hint)
	common := false
	for i, k := range *d.Keys {
		_, private := k["d"]
		e.Say("bundle-private", !private, "key %d", i)
		kty, _ := k["kty"].(string)
		e.Say("bundle-kty", kty != "", "key %d has none", i)
		use, _ := k["use"].(string)
		e.Say("bundle-use", use != "", "key %d has none", i)
		kid, hasKid := k["kid"]
		switch use {
		case "x509-svid":
			e.Say("bundle-x509-kid", !hasKid, "key %d: %v", i, kid)
			common = e.x5c(i, k) || common
		case "jwt-svid":
			e.Say("bundle-jwt-kid", hasKid && kid != "", "key %d has none", i)
		}
	}
	if e.own != nil {
		e.Say("bundle-workload", common, "none")
	} else {
		e.Skip("no Workload API beside", "bundle-workload")
	}
}

// x5c judges the certificate of a key and tells whether the Workload API knows
// it too.
func (e *endpoint) x5c(i int, k map[string]any) bool {
	list, _ := k["x5c"].([]any)
	text := ""
	if len(list) == 1 {
		text, _ = list[0].(string)
	}
	der, err := base64.StdEncoding.DecodeString(text)
	var cert *x509.Certificate
	if err == nil {
		cert, err = x509.ParseCertificate(der)
	}
	e.Say("bundle-x509-x5c", err == nil && sameKey(cert, k), "key %d: %d certificates, %v", i, len(list), err)
	return err == nil && bytes.Contains(e.own, der)
}

// sameKey compares the numbers of the JWK with the certificate's key.
func sameKey(cert *x509.Certificate, k map[string]any) bool {
	field := map[string]string{"EC": "x", "RSA": "n", "OKP": "x"}[fmt.Sprint(k["kty"])]
	text, _ := k[field].(string)
	number, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	return err == nil && len(number) > 0 && bytes.Contains(cert.RawSubjectPublicKeyInfo, bytes.TrimLeft(number, "\x00"))
}

// compare judges two answers, one after the other.
func (e *endpoint) compare(first, second []byte) {
	var a, b bundleDoc
	if json.Unmarshal(first, &a) != nil || json.Unmarshal(second, &b) != nil || a.Keys == nil || b.Keys == nil {
		return
	}
	before, ok := a.sequence()
	after, ok2 := b.sequence()
	if !ok || !ok2 {
		return
	}
	same := fmt.Sprint(*a.Keys) == fmt.Sprint(*b.Keys) // of maps, sorted
	e.Say("bundle-sequence-grows", after >= before && (same || after > before), "%d, then %d", before, after)
}

package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	// fetchTime bounds one fetch, redirects included.
	fetchTime    = 30 * time.Second
	maxRedirects = 3
	maxHeader    = 64 << 10 // bytes
)

// Cause is why a bundle could not be had, in one word for metrics.
type Cause string

// Causes.
const (
	Unreachable  Cause = "unreachable"
	Untrusted    Cause = "untrusted" // the endpoint did not prove who it is
	NoBundle     Cause = "no_bundle" // nothing to verify the endpoint with
	Redirected   Cause = "redirect"
	BadStatus    Cause = "status"
	TooLarge     Cause = "too_large"
	Garbage      Cause = "garbage"
	RanBackwards Cause = "backwards"
	ClaimsOurs   Cause = "own_trust_domain"
	NotKept      Cause = "not_kept" // our own failure

	// Superseded: the relationship has changed while its bundle was fetched.
	Superseded Cause = "superseded"
	// NotConfigured: there is no such relationship.
	NotConfigured Cause = "not_configured"
)

// Error says why the bundle of another trust domain could not be had. What was
// known of it stays.
type Error struct {
	Cause  Cause
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// Refuse makes an Error.
func Refuse(c Cause, format string, args ...any) *Error {
	return &Error{Cause: c, Reason: fmt.Sprintf(format, args...)}
}

// Client fetches bundles from bundle endpoints.
type Client struct {
	// Bundles verify endpoints of profile https_spiffe. They are asked at each
	// connection, for the latest.
	Bundles x509bundle.Source
	// Roots, when not nil, has what verifies the endpoint of profile https_web that
	// the bundle of a trust domain is fetched from: nil for the system's roots. It is
	// asked at each connection. An error fails the fetch.
	Roots func(spiffeid.TrustDomain) (*x509.CertPool, error)
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// CheckURL says whether text can be the URL of a bundle endpoint (SPIFFE
// Federation, section 5.2).
func CheckURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "https":
		return nil, fmt.Errorf("want https, got %q", u.Scheme)
	case u.User != nil:
		return nil, errors.New("no user or password may be in it")
	case u.Hostname() == "":
		return nil, errors.New("it names no host")
	}
	return u, nil
}

// Fetch gets the bundle that r tells of. The error is an *Error.
func (c *Client) Fetch(ctx context.Context, r *registry.Relationship) (*registry.FederatedBundle, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	first, err := CheckURL(r.EndpointURL)
	if err != nil {
		return nil, Refuse(Unreachable, "endpoint URL: %v", err)
	}
	for u, hops := first, 0; ; hops++ {
		data, next, err := c.get(ctx, r, u, u.Host != first.Host)
		if err != nil {
			return nil, err
		}
		if next == nil {
			b, err := Parse(r.TrustDomain, data)
			if err != nil {
				return nil, Refuse(Garbage, "the endpoint sent no bundle: %v", err)
			}
			return b, nil
		}
		if hops == maxRedirects {
			return nil, Refuse(Redirected, "the endpoint redirects more than %d times", maxRedirects)
		}
		u = next
	}
}

// get makes one request. It returns the body, or where the endpoint redirects.
func (c *Client) get(ctx context.Context, r *registry.Relationship, u *url.URL, elsewhere bool) ([]byte, *url.URL, error) {
	config, err := c.tls(r)
	if err != nil {
		return nil, nil, err
	}
	dialer := &net.Dialer{Timeout: fetchTime / 3, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return checkAddress(address, elsewhere)
	}}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: config,
		TLSHandshakeTimeout: fetchTime / 3, ResponseHeaderTimeout: fetchTime / 3, MaxResponseHeaderBytes: maxHeader,
		DisableKeepAlives: true, // each fetch verifies the endpoint anew
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil, Refuse(Unreachable, "endpoint URL: %v", err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, nil, classify(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		next, err := resp.Location()
		if err != nil {
			return nil, nil, Refuse(Redirected, "the endpoint redirects and does not say where to")
		}
		if next, err = CheckURL(next.String()); err != nil {
			return nil, nil, Refuse(Redirected, "the endpoint redirects to an URL that cannot be followed: %v", err)
		}
		return nil, next, nil
	default:
		return nil, nil, Refuse(BadStatus, "the endpoint answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument+1))
	switch {
	case err != nil:
		return nil, nil, Refuse(Unreachable, "the answer of the endpoint ends early: %v", err)
	case len(data) > MaxDocument:
		return nil, nil, Refuse(TooLarge, "the endpoint sends more than %d bytes", MaxDocument)
	}
	return data, nil, nil
}

// tls is the configuration that proves the endpoint, which is the same after a
// redirect.
func (c *Client) tls(r *registry.Relationship) (*tls.Config, error) {
	now := c.Now
	if now == nil {
		now = time.Now
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Time: now}
	if r.Profile == registry.HTTPSWeb {
		if c.Roots == nil {
			return config, nil
		}
		var err error
		if config.RootCAs, err = c.Roots(r.TrustDomain); err != nil {
			return nil, Refuse(NoBundle, "authorities of the endpoint of %s: %v", r.TrustDomain.Name(), err)
		}
		return config, nil
	}
	td := r.EndpointID.TrustDomain()
	bundle, err := c.Bundles.GetX509BundleForTrustDomain(td)
	if err != nil || bundle.Empty() {
		return nil, Refuse(NoBundle, "the endpoint is %s, and there is no authority of %s to verify it with: set its bundle once", r.EndpointID, td.Name())
	}
	// VerifyConnection runs on every handshake; what is skipped is the check of
	// a DNS name that SVIDs do not have.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		id, _, err := x509svid.Verify(state.PeerCertificates, bundle, x509svid.WithTime(now()))
		if err != nil {
			return Refuse(Untrusted, "the endpoint's X509-SVID does not verify: %v", err)
		}
		if id != r.EndpointID {
			return Refuse(Untrusted, "the endpoint proves to be %s, and %s is wanted", id, r.EndpointID)
		}
		return nil
	}
	return config, nil
}

// checkAddress keeps fetches away from where no bundle endpoint is: link-local
// addresses, which clouds serve credentials on, and, where an endpoint has
// redirected to another host, everything that is not public.
func checkAddress(address string, elsewhere bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return Refuse(Unreachable, "%s is not an address", address)
	}
	ip := ap.Addr().Unmap().WithZone("")
	switch {
	case ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified():
		return Refuse(Unreachable, "the endpoint's address %s is link-local, multicast or unspecified: no bundle is fetched there", ip)
	case elsewhere && (ip.IsLoopback() || ip.IsPrivate()):
		return Refuse(Redirected, "the endpoint redirects to another host whose address %s is not public", ip)
	}
	return nil
}

func classify(err error) error {
	var known *Error
	var cert *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &cert), errors.As(err, &alert), errors.As(err, &record):
		return Refuse(Untrusted, "TLS with the endpoint: %v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return Refuse(Unreachable, "the endpoint did not answer in time")
	}
	return Refuse(Unreachable, "the endpoint cannot be reached: %v", err)
}

// CheckRelationship says what is wrong with a relationship. The error names the
// field.
func CheckRelationship(r *registry.Relationship) error {
	if _, err := CheckURL(r.EndpointURL); err != nil {
		return fmt.Errorf("bundle_endpoint_url: %w", err)
	}
	switch r.Profile {
	case registry.HTTPSWeb:
		if r.EndpointID != (spiffeid.ID{}) {
			return errors.New("endpoint_spiffe_id: is for the profile https_spiffe")
		}
	case registry.HTTPSSPIFFE:
		if r.EndpointID.Path() == "" {
			return errors.New("endpoint_spiffe_id: want the SPIFFE ID that the endpoint proves, with a path, as in spiffe://other.org/spire/server")
		}
	default:
		return errors.New("bundle_endpoint_profile: want https_web or https_spiffe")
	}
	return nil
}

package fetch

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/writ-dev/writ/internal/authorities"
	"github.com/writ-dev/writ/policy/bundle"
)

// requestTime bounds one download, beside the time that a long poll waits.
const requestTime = time.Minute

const (
	maxRedirects  = 5
	maxTokenBytes = 8 << 10
)

// HTTP says how a bundle server is spoken to. The zero HTTP trusts what the
// system trusts and sends no credentials.
type HTTP struct {
	// TokenFile holds a bearer token; it is read at each request, so that it
	// may be rotated. It is sent to the server of the URL and no other.
	TokenFile string
	// CAFile holds the certificates (PEM) of authorities to trust in place of
	// the system's.
	CAFile string
}

// CheckURL accepts https, and http to a loopback address.
func CheckURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Host == "" || u.Hostname() == "":
		return nil, fmt.Errorf("%s: no host", raw)
	case u.User != nil:
		return nil, fmt.Errorf("%s: no user or password in an URL: put a token into a file", u.Redacted())
	case u.Fragment != "":
		return nil, fmt.Errorf("%s: an URL of a bundle has no #", raw)
	case u.Scheme == "https":
		return u, nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return u, nil
	}
	return nil, fmt.Errorf("%s: want https (http is for loopback addresses only)", raw)
}

// Name is the URL without its query, in which secrets may be.
func Name(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "the policy source"
	}
	u.RawQuery, u.ForceQuery, u.User = "", false, nil
	return u.String()
}

// do sends the request; an error tells the URL's name only.
func do(client *http.Client, req *http.Request) (*http.Response, error) {
	resp, err := client.Do(req)
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = fmt.Errorf("%s: %w", Name(req.URL.String()), wrapped.Err)
	}
	return resp, err
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Check reads the files that h names, as a request would.
func (h HTTP) Check() error {
	_, noAuthorities := h.authorities()
	_, noToken := h.token()
	return errors.Join(noAuthorities, noToken)
}

// authorities is nil where those of the system are trusted.
func (h HTTP) authorities() (*x509.CertPool, error) {
	if h.CAFile == "" {
		return nil, nil
	}
	return authorities.Pool(h.CAFile)
}

// token is empty where none is sent.
func (h HTTP) token() (string, error) {
	if h.TokenFile == "" {
		return "", nil
	}
	token, err := os.ReadFile(h.TokenFile)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	token = bytes.TrimSpace(token)
	if len(token) == 0 || len(token) > maxTokenBytes || bytes.ContainsAny(token, "\r\n \t") {
		return "", fmt.Errorf("%s: want one token", h.TokenFile)
	}
	return string(token), nil
}

// client speaks TLS 1.2 or newer to the server of rawURL, and follows no
// redirect away from it.
func (h HTTP) client(rawURL string) (*http.Client, error) {
	origin, err := CheckURL(rawURL)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if config.RootCAs, err = h.authorities(); err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			TLSClientConfig:     config,
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout:     90 * time.Second,
			// What is limited is what is read, not what it unpacks to.
			DisableCompression: true,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			if req.URL.Scheme != origin.Scheme || req.URL.Host != origin.Host {
				return fmt.Errorf("redirect to another server (%s://%s): name that one instead", req.URL.Scheme, req.URL.Host)
			}
			return nil
		},
	}, nil
}

func (h HTTP) request(ctx context.Context, rawURL string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Prefer", "modes=snapshot")
	token, err := h.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, nil
}

func readBody(name string, resp *http.Response) ([]byte, error) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" && encoding != "gzip" {
		return nil, fmt.Errorf("%s: content encoding %q", name, encoding)
	}
	if resp.ContentLength > bundle.MaxArchiveBytes {
		return nil, tooLarge(name)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, bundle.MaxArchiveBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > bundle.MaxArchiveBytes {
		return nil, tooLarge(name)
	}
	return data, nil
}

func tooLarge(name string) error {
	return errors.New(name + fmt.Sprintf(": larger than %d bytes", bundle.MaxArchiveBytes))
}

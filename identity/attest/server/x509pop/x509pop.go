// Package x509pop is the server half of attestation by an X.509 certificate
// that the node has already. The agent's half is identity/attest/x509pop.
package x509pop

import (
	"context"
	"crypto/sha1" // names certificates, as SPIRE's IDs and selectors do; proves nothing
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/attest/x509pop"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/authorities"
)

const (
	maxPayload      = 64 << 10
	maxAnswer       = 8 << 10
	maxCertificates = 8
)

// DefaultPath is the path of an agent's ID below /spire/agent.
const DefaultPath = "/{{ .PluginName }}/{{ .Fingerprint }}"

// Config of an Attestor.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// CABundles are files with the authorities (PEM) of the machines'
	// certificates. They are read at each attestation, so that they can change.
	CABundles []string
	// Path is a template of the agent's path below /spire/agent; DefaultPath if
	// empty.
	Path string
	// Clock is time.Now if nil.
	Clock func() time.Time
}

// Attestor is the server half. It implements server.Attestor.
type Attestor struct {
	cfg  Config
	path *template.Template
}

var _ server.Attestor = (*Attestor)(nil)

// New makes an Attestor of a configuration that can work now.
func New(cfg Config) (*Attestor, error) {
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	path, err := template.New("agent path").Option("missingkey=error").Parse(cfg.Path)
	if err != nil {
		return nil, err
	}
	a := &Attestor{cfg: cfg, path: path}
	if _, err := a.roots(); err != nil {
		return nil, err
	}
	return a, nil
}

// Type implements server.Attestor.
func (*Attestor) Type() string { return x509pop.Type }

// Attest implements server.Attestor.
func (a *Attestor) Attest(ctx context.Context, payload []byte, challenge server.Challenge) (*server.Attested, error) {
	leaf, intermediates, err := parseData(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", server.ErrRefused, err)
	}
	roots, err := a.roots()
	if err != nil {
		return nil, err // ours, not the caller's
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: a.cfg.Clock(),
		// Machines' certificates are made for many purposes. What matters is
		// that the key may sign, which prove asks.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: the certificate: %w", server.ErrRefused, err)
	}
	if err := prove(ctx, leaf, challenge); err != nil {
		return nil, err
	}
	sans := a.sanValues(leaf)
	id, err := a.agentID(leaf, sans)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", server.ErrRefused, err)
	}
	return &server.Attested{ID: id, Selectors: selectors(leaf, chains, sans), CanReattest: true}, nil
}

// parseData reads the payload.
func parseData(payload []byte) (leaf *x509.Certificate, intermediates *x509.CertPool, err error) {
	var data x509pop.Data
	if err := x509pop.Decode(payload, maxPayload, &data); err != nil {
		return nil, nil, fmt.Errorf("payload: %w", err)
	}
	if n := len(data.Certificates); n == 0 || n > maxCertificates {
		return nil, nil, fmt.Errorf("payload: %d certificates, want 1 to %d", n, maxCertificates)
	}
	if leaf, err = x509.ParseCertificate(data.Certificates[0]); err != nil {
		return nil, nil, fmt.Errorf("payload: certificate: %w", err)
	}
	intermediates = x509.NewCertPool()
	for _, der := range data.Certificates[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("payload: intermediate: %w", err)
		}
		intermediates.AddCert(cert)
	}
	return leaf, intermediates, nil
}

// prove makes the caller show that it holds the certificate's key.
func prove(ctx context.Context, leaf *x509.Certificate, ask server.Challenge) error {
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("%w: the certificate's key is not for digital signatures (key usage)", server.ErrRefused)
	}
	challenge, err := x509pop.NewChallenge(leaf.PublicKey)
	if err != nil {
		return fmt.Errorf("%w: %w", server.ErrRefused, err)
	}
	question, err := json.Marshal(challenge)
	if err != nil {
		return err
	}
	answer, err := ask(ctx, question)
	if err != nil {
		return err
	}
	var response x509pop.Response
	if err := x509pop.Decode(answer, maxAnswer, &response); err != nil {
		return fmt.Errorf("%w: answer to the challenge: %w", server.ErrRefused, err)
	}
	if err := x509pop.Verify(leaf.PublicKey, challenge, &response); err != nil {
		return fmt.Errorf("%w: answer to the challenge: %w", server.ErrRefused, err)
	}
	return nil
}

func (a *Attestor) roots() (*x509.CertPool, error) {
	if len(a.cfg.CABundles) == 0 {
		return nil, errors.New("x509pop has no authorities: name a file")
	}
	roots, err := authorities.Pool(a.cfg.CABundles...)
	if err != nil {
		return nil, fmt.Errorf("authorities of x509pop: %w", err)
	}
	return roots, nil
}

// pathData is what a template of the path may use; the names are SPIRE's.
type pathData struct {
	*x509.Certificate
	PluginName, Fingerprint, SerialNumberHex, TrustDomain string
	URISanSelectors                                       map[string]string
}

func (a *Attestor) agentID(leaf *x509.Certificate, sans map[string]string) (spiffeid.ID, error) {
	var path strings.Builder
	err := a.path.Execute(&path, pathData{
		Certificate: leaf, PluginName: x509pop.Type, Fingerprint: fingerprint(leaf), SerialNumberHex: serialHex(leaf.SerialNumber),
		TrustDomain: a.cfg.TrustDomain.Name(), URISanSelectors: sans,
	})
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the agent's path: %w", err)
	}
	if !strings.HasPrefix(path.String(), "/") {
		return spiffeid.ID{}, fmt.Errorf("the agent's path %q does not begin with /", path.String())
	}
	id, err := spiffeid.FromPath(a.cfg.TrustDomain, "/spire/agent"+path.String())
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the agent's path %q: %w", path.String(), err)
	}
	return id, nil
}

// selectors are what entries may ask of the node.
func selectors(leaf *x509.Certificate, chains [][]*x509.Certificate, sans map[string]string) []registry.Selector {
	var all []registry.Selector
	add := func(value string) {
		s := registry.Selector{Type: x509pop.Type, Value: value}
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if cn := leaf.Subject.CommonName; cn != "" {
		add("subject:cn:" + cn)
	}
	for _, chain := range chains {
		for _, authority := range chain[1:] {
			add("ca:fingerprint:" + fingerprint(authority))
		}
	}
	add("serialnumber:" + serialHex(leaf.SerialNumber))
	for _, key := range slices.Sorted(maps.Keys(sans)) {
		add("san:" + key + ":" + sans[key])
	}
	return all
}

// sanValues reads the names x509pop://<trust domain>/<key>/<value> that the
// PKI put into the certificate for this purpose.
func (a *Attestor) sanValues(leaf *x509.Certificate) map[string]string {
	values := map[string]string{}
	for _, uri := range leaf.URIs {
		if uri.Scheme != x509pop.Type || uri.Host != a.cfg.TrustDomain.Name() {
			continue
		}
		if key, value, ok := strings.Cut(strings.Trim(uri.Path, "/"), "/"); ok {
			values[key] = value
		}
	}
	return values
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha1.Sum(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// serialHex is lower-case hexadecimal of whole bytes.
func serialHex(n *big.Int) string {
	digits := n.Text(16)
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	return digits
}

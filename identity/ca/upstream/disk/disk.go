// Package disk is an upstream authority whose certificate and key are files: a
// CA of one's own, kept offline or by other software, signs the X.509
// authorities of a control plane. The files are read anew for each signature,
// and the roots whenever they change.
package disk

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/ca"
)

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// Config of an Upstream. TrustDomain, Cert and Key are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// Cert is a file with the CA certificate, PEM, and after it those between it
	// and its root, if there are any.
	Cert string
	// Key is a file with the private key, PEM (PKCS #8, SEC 1 or PKCS #1), that
	// nobody but this process's user can read.
	Key string
	// Bundle is a file with the roots, PEM; Cert is the root if empty.
	Bundle string
	Log    *slog.Logger
	// Clock is time.Now if nil.
	Clock func() time.Time
}

// Upstream signs with the key in a file.
type Upstream struct{ cfg Config }

var _ ca.Upstream = (*Upstream)(nil)

// New checks that the files are there and fit.
func New(cfg Config) (*Upstream, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	u := &Upstream{cfg: cfg}
	_, err := u.load()
	return u, err
}

// files are the content of the files.
type files struct {
	key crypto.Signer
	// chain is what goes below a signed authority: nothing where the CA is the
	// root.
	cert  *x509.Certificate
	chain []*x509.Certificate
	roots []ca.Root
}

func (u *Upstream) load() (*files, error) {
	certs, err := readCerts(u.cfg.Cert)
	if err != nil {
		return nil, fmt.Errorf("upstream certificate: %w", err)
	}
	f := &files{cert: certs[0], chain: certs}
	if f.key, err = readKey(u.cfg.Key); err != nil {
		return nil, fmt.Errorf("upstream key: %w", err)
	}
	roots := certs
	if u.cfg.Bundle != "" {
		if roots, err = readCerts(u.cfg.Bundle); err != nil {
			return nil, fmt.Errorf("upstream bundle: %w", err)
		}
	}
	for _, root := range roots {
		f.roots = append(f.roots, ca.Root{Cert: root})
	}
	if slices.ContainsFunc(roots, f.cert.Equal) {
		f.chain = nil
	}
	if err := u.check(f, roots); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	return f, nil
}

func (u *Upstream) check(f *files, roots []*x509.Certificate) error {
	public, ok := f.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(f.cert.PublicKey):
		return fmt.Errorf("the key in %s is not that of the certificate in %s", u.cfg.Key, u.cfg.Cert)
	case !f.cert.IsCA || f.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s: not the certificate of a CA that may sign certificates", u.cfg.Cert)
	case f.cert.MaxPathLenZero:
		return fmt.Errorf("%s: its path length is 0, so that it may not sign authorities, only what ends a chain", u.cfg.Cert)
	case u.cfg.Bundle == "" && f.cert.CheckSignatureFrom(f.cert) != nil:
		return fmt.Errorf("%s: not a root, for another CA signed it: name a file with the roots (bundle)", u.cfg.Cert)
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	for _, cert := range f.chain {
		between.AddCert(cert)
	}
	_, err := f.cert.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: u.cfg.Clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("the certificate in %s does not lead to a root: %w", u.cfg.Cert, err)
	}
	return nil
}

// MintX509CA implements ca.Upstream.
func (u *Upstream) MintX509CA(_ context.Context, csr []byte, life time.Duration) ([]*x509.Certificate, []ca.Root, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("request of an authority: %w", err)
	}
	f, err := u.load()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(req.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	id := sha256.Sum256(der)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	now := u.cfg.Clock().UTC().Truncate(time.Second)
	end := now.Add(life)
	if end.After(f.cert.NotAfter) {
		end = f.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: req.Subject.Organization, SerialNumber: req.Subject.SerialNumber},
		NotBefore:             now.Add(-ca.Backdate),
		NotAfter:              end,
		URIs:                  []*url.URL{u.cfg.TrustDomain.ID().URL()},
		SubjectKeyId:          id[:20],
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if f.cert.MaxPathLen > 0 {
		template.MaxPathLen = f.cert.MaxPathLen - 1
		template.MaxPathLenZero = template.MaxPathLen == 0
	}
	der, err = x509.CreateCertificate(rand.Reader, template, f.cert, req.PublicKey, f.key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	return append([]*x509.Certificate{cert}, f.chain...), f.roots, nil
}

// PublishJWTKey implements ca.Upstream: files know no JWT authorities.
func (u *Upstream) PublishJWTKey(context.Context, ca.JWTAuthority) error {
	return errors.ErrUnsupported
}

// Follow implements ca.Upstream. The directories are watched, since files are
// replaced by renaming.
func (u *Upstream) Follow(ctx context.Context, changed func(ca.UpstreamBundle)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	watched := map[string]bool{}
	for _, file := range []string{u.cfg.Cert, u.cfg.Key, u.cfg.Bundle} {
		if dir := filepath.Dir(file); file != "" && !watched[dir] {
			if err := w.Add(dir); err != nil {
				return fmt.Errorf("watch %s: %w", dir, err)
			}
			watched[dir] = true
		}
	}
	var last []byte
	for {
		f, err := u.load()
		if err != nil {
			// They are replaced one after the other, and fit again in the end.
			u.cfg.Log.WarnContext(ctx, "the files of the upstream do not fit, going on with what there was", "error", err)
		} else {
			var now []byte
			for _, root := range f.roots {
				now = append(now, root.Cert.Raw...)
			}
			if !bytes.Equal(now, last) {
				last = now
				changed(ca.UpstreamBundle{X509: f.roots})
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return errors.New("the watch on the files has ended")
			}
		case err := <-w.Errors:
			return fmt.Errorf("watch files: %w", err)
		}
	}
}

func read(path string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	return data, info, err
}

func readCerts(path string) ([]*x509.Certificate, error) {
	data, _, err := read(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

func parseCerts(data []byte) (certs []*x509.Certificate, err error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it (PEM)")
	}
	return certs, nil
}

func readKey(path string) (crypto.Signer, error) {
	data, info, err := read(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %#o lets others in: chmod go-rwx it, and replace the key if someone may have read it", path, mode)
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// parseKey reads the first private key. Errors never quote the content.
func parseKey(data []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted: decrypt it")
		default:
			continue // as EC PARAMETERS
		}
		if err != nil {
			return nil, errors.New("the private key is malformed")
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return nil, errors.New("no private key in it (PEM)")
}

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/writ-dev/writ/internal/authorities"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/writdconf"
)

// webCert is a certificate of the web, from files that somebody else renews.
type webCert struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	of     [2]stamp
}

// stamp tells one content of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

func openWebCert(cert, key string, log *slog.Logger) (*webCert, error) {
	c := &webCert{cert: cert, key: key, log: log}
	_, err := c.get(nil)
	return c, err
}

// get reads the files again when they have changed. While they do not fit
// together, because one is replaced before the other, the last ones serve.
func (c *webCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.stamps()
	if err == nil && c.loaded != nil && now == c.of {
		return c.loaded, nil
	}
	if err == nil {
		var next tls.Certificate
		if next, err = tls.LoadX509KeyPair(c.cert, c.key); err == nil {
			c.loaded, c.of = &next, now
			return c.loaded, nil
		}
		err = fmt.Errorf("%s with %s: %w", c.cert, c.key, err)
	}
	if c.loaded == nil {
		return nil, err
	}
	if c.log != nil {
		c.log.Warn("certificate files cannot be read, the last ones serve", "error", err)
	}
	return c.loaded, nil
}

func (c *webCert) stamps() (both [2]stamp, err error) {
	for n, name := range []string{c.cert, c.key} {
		info, serr := os.Stat(name)
		if serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		both[n] = stamp{info.ModTime(), info.Size()}
	}
	return both, err
}

// validateCerts reads the files of certificates of the web, and of their authorities.
func validateCerts(cfg *writdconf.Config, at daemon.At) error {
	var errs []error
	if f := cfg.Federation; f != nil && f.CertFile != "" && f.KeyFile != "" {
		if _, err := openWebCert(f.CertFile, f.KeyFile, nil); err != nil {
			errs = append(errs, at("federation.cert_file", "%v", err))
		}
	}
	if o := cfg.OIDC; o != nil && o.CertFile != "" && o.KeyFile != "" {
		if _, err := openWebCert(o.CertFile, o.KeyFile, nil); err != nil {
			errs = append(errs, at("oidc.cert_file", "%v", err))
		}
	}
	for name, file := range cfg.FederationCAFiles {
		if _, err := authorities.Pool(file); err != nil {
			errs = append(errs, at("federation_ca_files."+name, "%v", err))
		}
	}
	return errors.Join(errs...)
}

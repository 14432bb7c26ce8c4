package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/oidc"
	"github.com/writ-dev/writ/internal/authorities"
	"github.com/writ-dev/writ/internal/writdconf"
)

// listenFederation serves our trust bundle to other trust domains.
func (w *writd) listenFederation() (*listener, error) {
	cfg := w.cfg.Federation
	if cfg == nil || w.issuer == nil {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
	var source *issuer.Source
	if cfg.Profile == writdconf.ProfileWeb {
		cert, err := openWebCert(cfg.CertFile, cfg.KeyFile, w.log)
		if err != nil {
			return nil, fmt.Errorf("federation: %w", err)
		}
		config.GetCertificate = cert.get
	} else {
		var err error
		if source, err = w.issuer.EndpointSource(); err != nil {
			return nil, fmt.Errorf("federation: %w", err)
		}
		config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			svid, err := source.GetX509SVID()
			if err != nil {
				return nil, err
			}
			cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
			for _, c := range svid.Certificates {
				cert.Certificate = append(cert.Certificate, c.Raw)
			}
			return cert, nil
		}
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		err = fmt.Errorf("federation listener: %w", err)
		if source != nil {
			err = errors.Join(err, source.Close())
		}
		return nil, err
	}
	w.log.Info("bundle endpoint listens", "address", l.Addr().String(), "profile", cfg.Profile)
	served := httpListener("federation", l, config, federation.Handler(w.issuer.OwnBundle, cfg.RefreshHint))
	if source != nil {
		serve := served.serve
		served.serve = func() error { return errors.Join(serve(), source.Close()) }
	}
	return served, nil
}

// federationRoots are the authorities of the bundle endpoint of a trust domain, nil for
// the system's. A file that cannot be read does not fall back to those.
func (w *writd) federationRoots(td spiffeid.TrustDomain) (*x509.CertPool, error) {
	file, ok := w.cfg.FederationCAFiles[td.Name()]
	if !ok {
		return nil, nil
	}
	return authorities.Pool(file)
}

// listenOIDC serves the keys of JWT-SVIDs to those who verify them as tokens of
// OpenID Connect.
func (w *writd) listenOIDC() (*listener, error) {
	cfg := w.cfg.OIDC
	if cfg == nil || w.issuer == nil {
		return nil, nil
	}
	handler, err := oidc.Handler(oidc.Config{Issuer: cfg.Issuer, Own: w.issuer.OwnBundle})
	if err != nil {
		return nil, fmt.Errorf("oidc: %w", err)
	}
	var config *tls.Config
	var l net.Listener
	if cfg.CertFile == "" {
		l, err = loopbackOnly(cfg.Listen)
	} else {
		var cert *webCert
		if cert, err = openWebCert(cfg.CertFile, cfg.KeyFile, w.log); err != nil {
			return nil, fmt.Errorf("oidc: %w", err)
		}
		config = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
		l, err = net.Listen("tcp", cfg.Listen)
	}
	if err != nil {
		return nil, fmt.Errorf("oidc listener: %w", err)
	}
	w.log.Info("OIDC discovery listens", "address", l.Addr().String(), "issuer", cfg.Issuer)
	return httpListener("oidc", l, config, handler), nil
}

// jwtIssuer is the iss claim of JWT-SVIDs, where verifiers can look it up.
func (w *writd) jwtIssuer() string {
	if w.cfg.OIDC == nil {
		return ""
	}
	return w.cfg.OIDC.Issuer
}

// httpListener serves to strangers: each may take only so long and send only so
// much. Without config it is plain.
func httpListener(name string, l net.Listener, config *tls.Config, handler http.Handler) *listener {
	s := &http.Server{
		Handler: handler, TLSConfig: config,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 16 << 10,
	}
	return &listener{
		name: name, addr: l.Addr(),
		serve: func() error {
			serve := func() error { return s.Serve(l) }
			if config != nil {
				serve = func() error { return s.ServeTLS(l, "", "") }
			}
			err := serve()
			if err != http.ErrServerClosed {
				return err
			}
			return nil
		},
		graceful: func() { _ = s.Shutdown(context.Background()) },
		now:      func() { _ = s.Close() },
	}
}

// federationProblems are the bundles of other trust domains that are not fresh.
func (w *writd) federationProblems() []string {
	if w.issuer == nil {
		return nil
	}
	var list []string
	for _, s := range w.issuer.Federation() {
		if s.Failing == "" {
			continue
		}
		since := "not since writd started"
		if !s.Success.IsZero() {
			since = s.Success.UTC().Format(time.RFC3339)
		}
		list = append(list, fmt.Sprintf("the bundle of %s is not refreshed, the last one stays: %s (%s; last refreshed: %s)", s.TrustDomain.Name(), s.Failing, s.EndpointURL, since))
	}
	return list
}

// federationMetrics tells of each relationship how old its bundle is and how
// often it could not be had.
type federationMetrics struct{ w *writd }

var (
	bundleRefreshed = prometheus.NewDesc("writd_federation_refreshed_seconds", "Unix time at which the bundle of another trust domain was last fetched; 0 is never since the start.", []string{"trust_domain"}, nil)
	bundleFailures  = prometheus.NewDesc("writd_federation_failures_total", "Fetches of the bundle of another trust domain that failed, by cause.", []string{"trust_domain", "cause"}, nil)
)

func (m federationMetrics) Describe(c chan<- *prometheus.Desc) {
	c <- bundleRefreshed
	c <- bundleFailures
}

func (m federationMetrics) Collect(c chan<- prometheus.Metric) {
	for _, s := range m.w.issuer.Federation() {
		at := 0.0
		if !s.Success.IsZero() {
			at = float64(s.Success.Unix())
		}
		c <- prometheus.MustNewConstMetric(bundleRefreshed, prometheus.GaugeValue, at, s.TrustDomain.Name())
		for cause, n := range s.Failures {
			c <- prometheus.MustNewConstMetric(bundleFailures, prometheus.CounterValue, float64(n), s.TrustDomain.Name(), string(cause))
		}
	}
}

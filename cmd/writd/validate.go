package main

import (
	"errors"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/attest/server/x509pop"
	"github.com/writ-dev/writ/identity/ca/upstream/disk"
	"github.com/writ-dev/writ/internal/authorities"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/writdconf"
)

// validateIssuer reads what the issuer is made of and others have given: files of
// authorities and keys, and where the database is. What is missing in the
// configuration is for its own Validate to say.
func validateIssuer(cfg *writdconf.Config, at daemon.At) error {
	var errs []error
	if d := cfg.Database; d != nil && (d.Postgres == "") != (d.DSNFile == "") {
		key := "database.postgres"
		if d.DSNFile != "" {
			key = "database.dsn_file"
		}
		dsn, err := d.DSN()
		if err == nil {
			err = sqldb.CheckDSN(dsn)
		}
		if err != nil {
			errs = append(errs, at(key, "%s", strings.TrimPrefix(err.Error(), key+": ")))
		}
	}
	if !cfg.Runs("issuer") {
		return errors.Join(errs...)
	}
	if cfg.Keys != nil && cfg.Keys.PKCS11 != nil && !hasPKCS11 {
		errs = append(errs, at("keys.pkcs11", "this writd was built without PKCS #11, which needs cgo: build it with -tags pkcs11"))
	}
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return errors.Join(errs...) // the rest is about its files
	}
	if u := cfg.Upstream; u != nil && u.Disk != nil && u.Disk.Cert != "" && u.Disk.Key != "" {
		if _, err := disk.New(disk.Config{TrustDomain: td, Cert: u.Disk.Cert, Key: u.Disk.Key, Bundle: u.Disk.Bundle}); err != nil {
			errs = append(errs, at("upstream.disk", "%v", err))
		}
	}
	if c := cfg.Attestors.X509PoP; c != nil && len(c.CABundle) > 0 {
		if _, err := authorities.Pool(c.CABundle...); err != nil {
			errs = append(errs, at("attestors.x509pop.ca_bundle", "%v: name files with the authorities (PEM) of the machines' certificates", err))
		} else if _, err := x509pop.New(x509pop.Config{TrustDomain: td, CABundles: c.CABundle, Path: c.AgentPathTemplate}); err != nil {
			errs = append(errs, at("attestors.x509pop.agent_path_template", "%v", err))
		}
	}
	return errors.Join(errs...)
}

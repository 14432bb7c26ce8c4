package main

import (
	"cmp"
	"context"
	"time"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/ca/upstream/disk"
	"github.com/writ-dev/writ/identity/ca/upstream/spire"
	"github.com/writ-dev/writ/identity/keys"
)

// openCA opens the signing authorities.
func (w *writd) openCA(ctx context.Context, journal ca.Journal) (*ca.CA, error) {
	config := ca.Config{
		TrustDomain: w.td, Keys: w.keys, Journal: journal, Emit: w.emit, Log: w.log,
		Life: w.cfg.CATTL, X509SVIDLife: w.cfg.SVIDTTL, JWTSVIDLife: w.cfg.JWTTTL, JWTIssuer: w.jwtIssuer(),
		Revoked: w.store.Revocations().Now, CRLLife: cmp.Or(w.cfg.CRLTTL, max(24*time.Hour, 2*w.cfg.SVIDTTL)),
	}
	if w.member != nil {
		config.Journal, config.Peers = w.member, w.member
	}
	var err error
	switch k := w.cfg.Keys; {
	case k == nil:
	case k.Memory != nil:
		config.Keys = new(keys.Memory)
		w.log.Warn("the keys of the authorities are in memory alone: at each start new ones sign, and who has only older bundles does not verify what they sign")
	case k.PKCS11 != nil:
		if config.Keys, w.token, err = openPKCS11(k.PKCS11); err != nil {
			return nil, err
		}
	}
	if w.cfg.CAKeyType != "" {
		if config.KeyType, err = keys.ParseAlgorithm(w.cfg.CAKeyType); err != nil {
			return nil, err
		}
	}
	if name := cmp.Or(w.cfg.JWTKeyType, w.cfg.CAKeyType); name != "" {
		if config.JWTKeyType, err = keys.ParseAlgorithm(name); err != nil {
			return nil, err
		}
	}
	if config.Upstream, err = w.openUpstream(); err != nil {
		return nil, err
	}
	return ca.Open(ctx, config)
}

// openUpstream is who signs the authorities, nil for themselves.
func (w *writd) openUpstream() (ca.Upstream, error) {
	switch u := w.cfg.Upstream; {
	case u == nil:
		return nil, nil
	case u.Disk != nil:
		return disk.New(disk.Config{TrustDomain: w.td, Cert: u.Disk.Cert, Key: u.Disk.Key, Bundle: u.Disk.Bundle, Log: w.log})
	default:
		up := spire.New(spire.Config{TrustDomain: w.td, ServerAddress: u.SPIRE.ServerAddress, WorkloadAPI: u.SPIRE.WorkloadAPI, Log: w.log})
		w.upstream = up
		return up, nil
	}
}

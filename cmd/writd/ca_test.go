package main

import (
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/writdconf"
)

// Keys in memory leave no file, and at the next start another authority signs, while
// the bundle keeps the old one.
func TestKeysInMemory(t *testing.T) {
	cfg := writdconf.Default()
	cfg.TrustDomain, cfg.DataDir, cfg.Keys = "example.org", t.TempDir(), &writdconf.Keys{Memory: &writdconf.MemoryKeys{}}
	log := slog.New(slog.DiscardHandler)
	start := func() (signer *x509.Certificate, bundle []*x509.Certificate) {
		t.Helper()
		w := &writd{cfg: cfg, log: log, alarms: newAlarms(log), held: map[string]*sqldb.Held{}}
		if err := w.open(context.Background()); err != nil {
			t.Fatal(err)
		}
		svid, err := w.source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := w.issuer.Bundle()
		bundle = b.X509Authorities
		for _, c := range bundle {
			if svid.Certificates[0].CheckSignatureFrom(c) == nil {
				signer = c
			}
		}
		if signer == nil {
			t.Fatal("its own SVID is not signed by its bundle")
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
		return signer, bundle
	}
	first, _ := start()
	second, bundle := start()
	if first.Equal(second) {
		t.Error("the same authority signs after a restart")
	}
	if !slices.ContainsFunc(bundle, first.Equal) {
		t.Error("the bundle forgot the authority whose SVIDs are out there")
	}
	files, err := filepath.Glob(filepath.Join(cfg.DataDir, "keys", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		switch filepath.Base(f) {
		case "audit.key", "registry.key", "decision.pem":
		default:
			info, _ := os.Stat(f)
			t.Errorf("a key on disk: %v", info)
		}
	}
}

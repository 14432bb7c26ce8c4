package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/writdconf"
)

// refusedStart is what serve says of a data directory in which it does not start.
func refusedStart(t *testing.T, cfg writdconf.Config) string {
	t.Helper()
	err := serve(t.Context(), cfg, slog.New(slog.DiscardHandler), new(slog.LevelVar))
	if err == nil {
		t.Fatal("it started")
	}
	return err.Error()
}

// left is the configuration of a control plane that ran, and its data directory.
func left(t *testing.T, name string) writdconf.Config {
	t.Helper()
	cfg := writdconf.Default()
	cfg.TrustDomain, cfg.DataDir = name, t.TempDir()
	log := slog.New(slog.DiscardHandler)
	w := &writd{cfg: cfg, log: log, alarms: newAlarms(log), held: map[string]*sqldb.Held{}}
	if err := w.open(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A directory of another trust domain is said to be one, both are named, and nothing
// in it is touched.
func TestAnotherTrustDomain(t *testing.T) {
	cfg := left(t, "example.org")
	key := filepath.Join(cfg.DataDir, "public", "audit.vkey")
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TrustDomain = "example.com"
	if got := refusedStart(t, cfg); !strings.Contains(got, "is of trust domain example.org, and trust_domain is example.com") || strings.Contains(got, "ledger") {
		t.Error(got)
	}
	if after, err := os.ReadFile(key); err != nil || string(after) != string(before) {
		t.Errorf("%s is now %q, %v", key, after, err)
	}
}

// A damaged database is named, and what to do.
func TestDamagedDatabase(t *testing.T) {
	for name, damage := range map[string]func(b []byte){
		"pages": func(b []byte) {
			for i := 4096; i < len(b); i++ {
				b[i] = 0xa5
			}
		},
		"head": func(b []byte) { copy(b, "nothing that SQLite knows") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := left(t, "example.org")
			file := filepath.Join(cfg.DataDir, "writ.db")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			damage(b)
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := refusedStart(t, cfg); !strings.Contains(got, "the database "+file+" is damaged: restore a backup (docs/howto/backup-restore.md)") {
				t.Error(got)
			}
		})
	}
}

// The wire says what is wrong with a database that is gone, without its name, and what
// to do; health says so, too.
func TestRemovedDatabase(t *testing.T) {
	d := newDomain(t, "a.test", func(*writdconf.Config) {})
	if err := os.Remove(filepath.Join(d.cfg.DataDir, "writ.db")); err != nil {
		t.Fatal(err)
	}
	_, err := agentv1.NewAgentClient(d.admin).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), "the registry's database was removed or replaced while it was open") || strings.Contains(s.Message(), d.cfg.DataDir) {
		t.Errorf("CreateJoinToken: %v", err)
	}
	if got := strings.Join(d.problems(), "\n"); !strings.Contains(got, "registry: database was removed or replaced") {
		t.Errorf("health: %s", got)
	}
	if got := strings.Join(d.alarms.texts(), "\n"); !strings.Contains(got, "was removed or replaced") {
		t.Errorf("alarms: %s", got)
	}
}

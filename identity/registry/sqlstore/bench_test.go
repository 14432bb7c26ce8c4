package sqlstore_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// BenchmarkAgent is what the registry has of one agent's attestation by join token, and
// of one renewal, on SQLite.
func BenchmarkAgent(b *testing.B) {
	agent := func(n int, serial string) registry.Agent {
		return registry.Agent{ID: agentID(n), AttestationType: "join_token", Serial: serial, ExpiresAt: now.Add(time.Hour)}
	}
	hash := func(n int) [32]byte { return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	b.Run("attest", func(b *testing.B) {
		p := startProcess(b, openDB(b, filepath.Join(b.TempDir(), "writ.db")))
		for n := range b.N {
			b.StopTimer()
			update(b, p.Store, func(tx *sqlstore.Tx) error {
				return tx.CreateJoinToken(registry.JoinToken{Hash: hash(n), ExpiresAt: now.Add(time.Minute)})
			})
			b.StartTimer()
			update(b, p.Store, func(tx *sqlstore.Tx) error {
				if _, err := tx.UseJoinToken(hash(n)); err != nil {
					return err
				}
				return tx.PutAgent(agent(n, "1"))
			})
		}
	})
	b.Run("renew", func(b *testing.B) {
		p := startProcess(b, openDB(b, filepath.Join(b.TempDir(), "writ.db")))
		update(b, p.Store, func(tx *sqlstore.Tx) error { return tx.PutAgent(agent(0, "1")) })
		b.ResetTimer()
		for n := range b.N {
			update(b, p.Store, func(tx *sqlstore.Tx) error {
				if _, err := tx.Agent(agentID(0)); err != nil {
					return err
				}
				return tx.PutAgent(agent(0, fmt.Sprint(n)))
			})
		}
	})
}

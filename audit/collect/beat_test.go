package collect

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/ledger"
)

// said keeps what a recorder last said of itself.
type said struct {
	*ledger.Ledger
	last atomic.Uint64
}

func (s *said) Seen(name audit.Stream, committed uint64) {
	s.Ledger.Seen(name, committed)
	s.last.Store(committed)
}

// A recorder that stops says how much it has before it delivers the rest, so
// that a flush cut short is seen for what it is.
func TestCommittedIsAnnouncedAtStop(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	store := &said{Ledger: c.ledger}
	c.server.cfg.Store = store
	s := openSpool(t, filepath.Join(t.TempDir(), "spool"))
	record(t, s, 3)
	r := start(t, s, func() *collector { return c })
	c.stored(3)
	if got := store.last.Load(); got != 3 {
		t.Errorf("the hello says %d, want 3", got)
	}
	record(t, s, 2)
	r.stop()
	if got := store.last.Load(); got != 5 {
		t.Errorf("at the stop it says %d, want 5", got)
	}
	c.stop()
}

package ledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// An archive holds no head that covers more than the archive does, whatever is
// recorded and signed meanwhile.
func TestArchiveWhileSigning(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	var busy sync.WaitGroup
	busy.Go(func() {
		for range 150 {
			if err := appendBatch(l, f.batch(webs, 1)); err != nil {
				t.Error(err)
				return
			}
			if _, err := l.signHead(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 3 {
		busy.Go(func() {
			for range 100 {
				if _, err := l.signHead(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	dir := t.TempDir()
	for i := range 60 {
		name := filepath.Join(dir, fmt.Sprint(i))
		w, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Archive(context.Background(), w); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	busy.Wait()
	f.close(l)
	// Only now: verification takes longer than all that is recorded.
	for i := range 60 {
		r, err := Verify(context.Background(), VerifyConfig{Path: filepath.Join(dir, fmt.Sprint(i)), Keys: f.cfg.VerifierKey})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Problems {
			t.Errorf("archive %d: %v", i, p)
		}
	}
}

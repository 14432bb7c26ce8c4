package issuer

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
)

// Every function is run once and is done when do returns: without workers, with
// fewer than callers, and while they end.
func TestDeepWork(t *testing.T) {
	d := &deepWork{jobs: make(chan deepJob)}
	var ran atomic.Int64
	once := func() {
		mine := false
		d.do(func() { mine = true; ran.Add(1) })
		if !mine {
			t.Error("it was not done")
		}
	}
	once()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var workers, callers sync.WaitGroup
	workers.Go(func() { d.run(ctx) })
	for n := range 50 {
		callers.Go(func() {
			for range 100 {
				once()
			}
			if n == 25 {
				stop()
			}
		})
	}
	callers.Wait()
	workers.Wait()
	once()
	if got := ran.Load(); got != 50*100+2 {
		t.Errorf("%d functions ran, want %d", got, 50*100+2)
	}
}

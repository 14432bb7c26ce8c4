package issuer

import (
	"context"
	"runtime"
	"sync"
)

// deepWork runs functions that need a deep stack, as signing and verifying do,
// on goroutines that have one already. gRPC has a goroutine for each call; its
// stack would be grown, and copied, two or three times for each SVID.
type deepWork struct{ jobs chan deepJob }

type deepJob struct {
	do   func()
	done chan<- struct{}
}

// run serves until ctx ends: as many at a time as there are cores.
func (d *deepWork) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				select {
				case job := <-d.jobs:
					job.do()
					close(job.done)
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

// do runs a function and returns when it is done. Where everybody is busy, or
// nobody runs, the caller does it.
func (d *deepWork) do(f func()) {
	done := make(chan struct{})
	select {
	case d.jobs <- deepJob{f, done}:
		<-done
	default:
		f()
	}
}

package issuer_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
)

// unrecorded leaves the cost of the audit spool out of the figures.
func unrecorded(c *issuer.Config, a *ca.Config) {
	none := func(context.Context, identity.Act) error { return nil }
	c.Emit, a.Emit = none, none
}

// cpuTime is what this process has used, client and server together: the
// figure that other load on the machine disturbs least.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkIssueX509 signs over real TLS on loopback, client and server in one
// process: each connection asks for batches as fast as it can.
func BenchmarkIssueX509(b *testing.B) {
	for _, c := range []struct{ batch, connections int }{{1, 8}, {50, 8}, {500, 4}} {
		b.Run(fmt.Sprintf("batch=%d/connections=%d", c.batch, c.connections), func(b *testing.B) {
			w := newWorld(b, unrecorded)
			var agents []*agent
			for range c.connections {
				agents = append(agents, w.join(w.token("/node/a")))
			}
			var requests []*svidv1.BatchNewX509SVIDRequest
			key := newKey(b)
			for n := range c.batch {
				path := fmt.Sprintf("/svc/%d", n)
				e := w.create(entry(path, "/node/a", "uid:1"))[0]
				if len(requests) == 0 {
					requests = append(requests, &svidv1.BatchNewX509SVIDRequest{})
				}
				requests[0].Params = append(requests[0].Params, &svidv1.NewX509SVIDParams{EntryId: e.Id, Csr: csr(b, key, "spiffe://example.org"+path)})
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			before := cpuTime(b)
			b.ResetTimer()
			for _, a := range agents {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						resp, err := a.svids().BatchNewX509SVID(b.Context(), requests[0])
						if err != nil || resp.Results[0].Status.Code != 0 {
							b.Errorf("%v, %v", resp, err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N*c.batch)/b.Elapsed().Seconds(), "SVIDs/s")
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N*c.batch), "cpu-µs/SVID")
		})
	}
}

func BenchmarkIssueJWT(b *testing.B) {
	w := newWorld(b, unrecorded)
	var agents []*agent
	for range 8 {
		agents = append(agents, w.join(w.token("/node/a")))
	}
	e := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for _, a := range agents {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := a.svids().NewJWTSVID(b.Context(), &svidv1.NewJWTSVIDRequest{EntryId: e.Id, Audience: []string{"db"}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "SVIDs/s")
}

func BenchmarkCreateEntries(b *testing.B) {
	w := newWorld(b, unrecorded)
	n := 0
	for b.Loop() {
		var batch []*types.Entry
		for range 500 {
			n++
			batch = append(batch, entry(fmt.Sprintf("/svc/%d", n), "/node/a", "uid:1"))
		}
		if _, err := w.entries().BatchCreateEntry(b.Context(), &entryv1.BatchCreateEntryRequest{Entries: batch}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}

package issuer_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/watchv1"
)

// BenchmarkReturn has agents (-storm) come back at once after an outage, over TLS on
// loopback, clients and issuer in one process: each connects, asks what it missed
// and has 20 SVIDs signed. A tenth of them have less than a minute left, a tenth of
// them had none. Unordered is an issuer that begins with everything at once.
func BenchmarkReturn(b *testing.B) {
	for name, atOnce := range map[string]int{"ordered": 0, "unordered": 1 << 30} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				comeBack(b, atOnce, false)
			}
		})
	}
}

// BenchmarkReturnOwn is BenchmarkReturn of agents that have their own SVIDs renewed as
// well, each a transaction of the registry, and again one when it is first shown.
func BenchmarkReturnOwn(b *testing.B) {
	for b.Loop() {
		comeBack(b, 0, true)
	}
}

func comeBack(b *testing.B, atOnce int, own bool) {
	b.StopTimer()
	const svids = 20
	w := newWorld(b, unrecorded, func(c *issuer.Config, _ *ca.Config) { c.SignAtOnce = atOnce })
	f := newFleet(b, w, *stormSize, anHour)
	var renewed, urgent []time.Duration
	var refused atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	lives := make([]time.Duration, len(f.agents))
	for n, a := range f.agents {
		lives[n] = rand.N(30 * time.Minute)
		switch n % 10 {
		case 0:
			a.says = []string{admit.FirstProtocol}
		case 1:
			lives[n] = rand.N(time.Minute)
			fallthrough
		default:
			a.says = []string{admit.Protocol(lives[n])}
		}
		a.from = net.IPv4(127, 1, byte(n/250), byte(1+n%250)) // each an address of its own
		a.conn.Close()
		a.conn = w.dial(a)
	}
	b.StartTimer()
	begun, cpu := time.Now(), cpuTime(b)
	for n, a := range f.agents {
		wg.Go(func() {
			ctx := admit.WithLife(b.Context(), lives[n])
			if n%10 == 0 {
				ctx = admit.ForTheFirstTime(b.Context())
			}
			again := func(call func() error) {
				for {
					err := call()
					if err == nil {
						return
					}
					wait, ok := admit.RetryAfter(err)
					if !ok && status.Code(err) != codes.Unavailable { // of a handshake that was not begun
						b.Errorf("agent %d: %v", n, err)
						return
					}
					refused.Add(1)
					wait = max(wait, time.Second)
					time.Sleep(wait + rand.N(wait/2))
				}
			}
			if own {
				again(func() error {
					reply, err := a.agents().RenewAgent(b.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: f.csr}})
					if err == nil {
						a.adopt(reply.Svid, a.key)
					}
					return err
				})
			}
			again(func() error {
				stream, err := a.watch().Sync(b.Context(), &watchv1.SyncRequest{})
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			})
			req := &svidv1.BatchNewX509SVIDRequest{}
			for range svids {
				req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: f.entries[n], Csr: f.csr})
			}
			again(func() error {
				ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
				defer cancel()
				_, err := a.svids().BatchNewX509SVID(ctx, req)
				return err
			})
			took := time.Since(begun)
			mu.Lock()
			defer mu.Unlock()
			switch n % 10 {
			case 0:
				return
			case 1:
				urgent = append(urgent, took)
			}
			renewed = append(renewed, took)
		})
	}
	wg.Wait()
	all := time.Since(begun)
	cpu = cpuTime(b) - cpu
	b.StopTimer()
	w.end()
	for _, a := range f.agents {
		a.conn.Close()
	}
	report := func(name string, took []time.Duration) {
		slices.SortFunc(took, cmp.Compare[time.Duration])
		for _, p := range []int{50, 99} {
			b.ReportMetric(took[len(took)*p/100].Seconds(), fmt.Sprintf("s-%s-p%d", name, p))
		}
	}
	report("urgent", urgent)
	report("renewed", renewed)
	b.ReportMetric(all.Seconds(), "s-all")
	b.ReportMetric(cpu.Seconds(), "s-cpu")
	b.ReportMetric(float64(refused.Load()), "refused")
	b.ReportMetric(0, "ns/op")
	b.StartTimer()
}

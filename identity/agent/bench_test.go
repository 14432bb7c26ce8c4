package agent_test

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/identity/agent/agenttest"
)

// BenchmarkEntryToWorkload is the time from the creation of an entry to the
// arrival of its SVID at a workload that has a stream open, everything on one
// machine: issuer, agent, Workload API, go-spiffe's client.
func BenchmarkEntryToWorkload(b *testing.B) {
	r := agenttest.Start(b, time.Hour)
	r.Create("/svc/a", "/node/n1", myUID())
	n := startNode(b, config(b, r), r.Token("/node/n1"))
	source, err := workloadapi.NewX509Source(b.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(n.socket)), workloadapi.WithDefaultX509SVIDPicker(newest))
	must(b, err)
	defer source.Close()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		path := "/svc/z" + strconv.Itoa(1e6+i)
		start := time.Now()
		id := r.Create(path, "/node/n1", myUID())
		for pathOf(b, source) != path {
			<-source.Updated()
		}
		took = append(took, time.Since(start))
		b.StopTimer()
		r.Delete(id)
		for pathOf(b, source) == path {
			<-source.Updated()
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkFetchX509SVID is a one-shot fetch over one connection: attestation,
// look-up, message.
func BenchmarkFetchX509SVID(b *testing.B) {
	r := agenttest.Start(b, time.Hour)
	r.Create("/svc/a", "/node/n1", myUID())
	n := startNode(b, config(b, r), r.Token("/node/n1"))
	client, err := workloadapi.New(b.Context(), workloadapi.WithAddr(n.socket))
	must(b, err)
	defer client.Close()
	for b.Loop() {
		if _, err := client.FetchX509SVID(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

package registry_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/writ-dev/writ/identity/registry"
)

// BenchmarkIndexMemory says what an entry costs in memory, in a registry of
// 100,000 below 100 nodes.
func BenchmarkIndexMemory(b *testing.B) {
	const count = 100_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		entries := make([]*registry.Entry, count)
		for n := range entries {
			entries[n] = &registry.Entry{
				ID:       fmt.Sprintf("%08x-0000-4000-8000-000000000000", n),
				SPIFFEID: path(fmt.Sprintf("/svc/%d", n)), ParentID: path(fmt.Sprintf("/node/%d", n%100)),
				Selectors: sel(fmt.Sprintf("uid:%d", n)),
			}
		}
		x := registry.NewIndex(1, entries, nil)
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(x)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/count, "B/entry")
	}
}

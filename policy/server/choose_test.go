package server

import (
	"fmt"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestChoose: the share is kept among those who are there, and by those who
// come later.
func TestChoose(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://example.org/svc/orders")
	hashes := func(from, n int) (list []uint64) {
		for i := range n {
			list = append(list, followerHash(id, fmt.Sprint(from+i)))
		}
		slices.Sort(list)
		return list
	}
	for _, tt := range []struct{ connected, percent, want, later int }{
		{0, 10, 0, 10}, {1, 10, 1, 10}, {2, 50, 1, 50}, {2, 99, 1, 99}, {3, 10, 1, 10}, {100, 10, 10, 10}, {1000, 1, 10, 1}, {1000, 75, 750, 75},
	} {
		r := choose(hashes(0, tt.connected), tt.percent)
		count := func(list []uint64) (n int) {
			for _, hash := range list {
				if r.Has(hash) {
					n++
				}
			}
			return n
		}
		if got := count(hashes(0, tt.connected)); got != tt.want {
			t.Errorf("%d%% of %d: %d, want %d", tt.percent, tt.connected, got, tt.want)
		}
		// Never more than asked for, but for chance; fewer where the last that
		// was chosen lies well below the share.
		if got := count(hashes(10_000, 10_000)) / 100; got > tt.later+1 {
			t.Errorf("%d%% of %d: %d%% of those who come later, want %d%%", tt.percent, tt.connected, got, tt.later)
		}
		if r.Settled != (tt.connected > 0) {
			t.Errorf("settled with %d followers: %v", tt.connected, r.Settled)
		}
	}
}

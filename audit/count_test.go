package audit

import "testing"

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 gaps", 1: "1 gap", 2: "2 gaps"} {
		if got := Count(n, "gap", "gaps"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

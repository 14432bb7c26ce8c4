package program

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/writ-dev/writ/policy"
)

// TestAgainstReference compares the index with the reference on random
// programs. WRIT_SEED repeats one seed, and WRIT_ROUNDS does more.
func TestAgainstReference(t *testing.T) {
	seed, rounds := rand.Uint64(), 250
	if raceEnabled {
		rounds = 25
	}
	if s := os.Getenv("WRIT_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
		rounds = 1
	}
	if s := os.Getenv("WRIT_ROUNDS"); s != "" {
		rounds, _ = strconv.Atoi(s)
	}
	verdicts := map[string]int{}
	for range rounds {
		compareWithReference(t, source{rand.New(rand.NewPCG(seed, 0))}, verdicts)
		if t.Failed() {
			t.Fatalf("repeat with WRIT_SEED=%d", seed)
		}
		seed++
	}
	t.Log(verdicts)
	for _, tier := range []string{"guardrail", "break-glass", "overridable-guardrail", "service-deny", "service-allow", "default-deny", "ask"} {
		if verdicts[tier] == 0 && rounds > 100 {
			t.Errorf("no decision was %s: the test does not reach it", tier)
		}
	}
}

func compareWithReference(t *testing.T, s source, verdicts map[string]int) {
	t.Helper()
	p := s.program()
	e, err := New(p)
	if err != nil {
		t.Errorf("New: %v", err)
		return
	}
	var got, want policy.Decision
	for range 60 {
		in, clean := s.input()
		answered := e.Decide(in, &got)
		answers := naive{p: p, in: in}.decide(&want)
		if !answered {
			verdicts["ask"]++
			if diff := cmp.Diff(policy.Decision{}, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("it asks, and yet decides: %s", diff)
			}
			if answers && clean {
				t.Errorf("asked about %+v; the reference answers %+v", in, want)
			}
			continue
		}
		verdicts[got.Tier.String()]++
		if !answers {
			t.Errorf("answered %+v for %+v; the reference asks", got, in)
			continue
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%+v\n%s", in, diff)
		}
	}
}

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// decide measures one decision of the example shop, one at a time on one
// thread: ours from an Input as the sidecar holds it to a Decision, bare OPA
// from an input that is already OPA's own value to a result set. The
// benchmarks are in decide_test.go, because only policy/opa may import OPA's
// evaluator.
func decide(ctx context.Context, b *bench) ([]Row, error) {
	program := filepath.Join(b.work, "decide.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./test/bench").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the benchmarks: %w\n%s", err, out)
	}
	// Many short turns: what disturbs one then disturbs few.
	turns := *b
	turns.rounds, turns.length = 5*b.rounds, b.length/5
	return turns.rotate(ctx, []string{ours, "opa"}, func(subject string, s *samples) error {
		for _, verdict := range []string{"allow", "deny"} {
			values, err := turns.benchmark(ctx, program, fmt.Sprintf("^BenchmarkDecide$/^%s$/^%s$", verdict, subject))
			if err != nil {
				return err
			}
			s.add("decision, "+verdict, subject, "µs", values["ns/op"]/1e3)
			s.add("allocations, "+verdict, subject, "allocs", values["allocs/op"])
		}
		return nil
	})
}

// parseBenchmark reads the values of the one benchmark that ran, by unit.
func parseBenchmark(out string) (map[string]float64, error) {
	var found map[string]float64
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("more than one benchmark ran")
		}
		found = map[string]float64{}
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", fields[0], err)
			}
			found[fields[i+1]] = value
		}
	}
	if _, ok := found["ns/op"]; !ok {
		return nil, fmt.Errorf("no benchmark ran")
	}
	return found, nil
}

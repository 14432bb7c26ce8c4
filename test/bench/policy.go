package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// policyDecisions are decided by three subjects: the compiled
// policy, OPA asked for the same decision, and OPA asked for the set of allows
// alone, which is what a policy without tiers would cost.
var policyDecisions = []string{"grants-10", "grants-1000", "grants-10000", "unindexed-1000", "yaml-200"}

const (
	opaDecision = "opa"
	opaAllow    = "opa, allow only"
)

// policyBench measures what compiled policy costs and what it saves. The
// benchmarks are in policy_test.go.
func policyBench(ctx context.Context, b *bench) ([]Row, error) {
	program := filepath.Join(b.work, "policy.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./test/bench").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the benchmarks: %w\n%s", err, out)
	}
	turns := *b
	turns.rounds, turns.length = 3*b.rounds, b.length/5
	rows, err := turns.rotate(ctx, []string{ours, opaDecision, opaAllow}, func(subject string, s *samples) error {
		for _, name := range policyDecisions {
			if subject == opaAllow && name == "yaml-200" {
				continue // Rules in YAML have no package of their own.
			}
			values, err := turns.benchmark(ctx, program, fmt.Sprintf("^BenchmarkPolicy$/^%s$/^%s$", name, strings.ReplaceAll(subject, " ", "_")))
			if err != nil {
				return err
			}
			s.add("decide/"+name, subject, "ns", values["ns/op"])
			if subject == ours {
				s.add("decide/allocs, "+name, subject, "allocs", values["allocs/op"])
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	more, err := turns.rotate(ctx, []string{ours, opaDecision}, func(subject string, s *samples) error {
		values, err := turns.benchmark(ctx, program, fmt.Sprintf("^BenchmarkTopdown$/^%s$", subject))
		if err != nil {
			return err
		}
		s.add("topdown/ratio", subject, "ns", values["ns/op"])
		if subject != ours {
			return nil
		}
		if values, err = turns.benchmark(ctx, program, "^BenchmarkCompile$"); err != nil {
			return err
		}
		s.add("compile/grants-10000", subject, "s", values["ns/op"]/1e9)
		if values, err = turns.benchmark(ctx, program, "^BenchmarkProgramSize$"); err != nil {
			return err
		}
		s.add("program/grants-10000", subject, "MB", values["MB"])
		s.add("program/grants-10000 encoded", subject, "MB", values["encoded-MB"])
		return nil
	})
	return append(rows, more...), err
}

// benchmark runs the one benchmark of a test program that matches.
func (b *bench) benchmark(ctx context.Context, program, match string) (map[string]float64, error) {
	cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.benchmem", "-test.benchtime", b.length.String(), "-test.bench", match)
	cmd.Dir = filepath.Join("test", "bench")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	values, err := parseBenchmark(string(out))
	if err != nil {
		return nil, fmt.Errorf("%s: %w:\n%s", match, err, out)
	}
	return values, nil
}

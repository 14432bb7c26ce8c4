// Command bench measures Writ, beside peers that do the same work on the same
// machine in the same run, and prints one table.
//
// Each measure is taken in several rounds. In a round every subject is measured
// once, in an order that rotates, so that a slow minute hurts all alike; the
// value told is the median of the rounds. docs/performance.md explains what is
// measured and how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is what every suite is told.
type bench struct {
	// bin holds the four programs, work is removed at the end.
	bin, work string
	rounds    int
	// length of one measurement.
	length time.Duration
	// alone leaves peers out.
	alone bool
	// say tells what happens now.
	say func(format string, args ...any)
}

// suite measures one thing and gives its rows.
type suite struct {
	name  string
	about string
	run   func(context.Context, *bench) ([]Row, error)
	// budgets that the rows are held against, if any.
	budgets []Budget
}

var suites = []suite{
	{"decide", "one decision, beside bare OPA", decide, nil},
	{"policy", "compiled policy, beside OPA", policyBench, nil},
	{"pair", "client → proxy → mTLS → proxy → server, beside nginx", pair, nil},
	{"spire", "the issuer and the agent, beside SPIRE", spire, spireBudgets},
	{"idle", "what an agent holds for 10,000 open streams", idle, idleBudgets},
	{"storm", "5,000 agents at one issuer: what they hold, and how they come back", storm, stormBudgets},
	{"memory", "what the programs hold, idle and under load", memory, nil},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[0] == herdCommand {
		if err := serveHerd(ctx, args[1]); err != nil {
			fmt.Fprintln(stderr, "herd:", err)
			return 1
		}
		return 0
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("run", "", "suites to run, separated by commas; all when empty")
	rounds := flags.Int("rounds", 3, "times that each subject is measured; the median counts")
	length := flags.Duration("length", 5*time.Second, "length of one measurement")
	alone := flags.Bool("alone", false, "leave SPIRE out of the suite spire, to look at Writ alone")
	bin := flags.String("bin", "bin", "directory of the built programs")
	out := flags.String("out", "build/bench", "directory of the results")
	flags.Usage = func() {
		fmt.Fprintf(stderr, "usage: go run ./test/bench [flags]\n\nsuites:\n")
		for _, s := range suites {
			fmt.Fprintf(stderr, "  %-8s %s\n", s.name, s.about)
		}
		fmt.Fprintf(stderr, "\nflags:\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	chosen, err := choose(*only)
	if err != nil || *rounds < 1 || *length <= 0 {
		fmt.Fprintln(stderr, "bench:", errors.Join(err, errors.New("want -rounds and -length above 0")))
		return 2
	}
	b := &bench{rounds: *rounds, length: *length, alone: *alone, say: func(format string, args ...any) {
		fmt.Fprintf(stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
	}}
	if err := b.measure(ctx, chosen, *bin, *out, stdout); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func choose(names string) ([]suite, error) {
	if names == "" {
		return suites, nil
	}
	var chosen []suite
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no suite is called %q", name)
		}
		chosen = append(chosen, suites[i])
	}
	return chosen, nil
}

// measure runs the suites. What was measured is told even when a later suite
// fails.
func (b *bench) measure(ctx context.Context, chosen []suite, bin, out string, stdout io.Writer) (err error) {
	if b.bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	// Sockets live below it, so its path is short.
	if b.work, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	machine, commit, err := describe(ctx)
	if err != nil {
		return err
	}
	var reports []Report
	var errs []error
	for _, s := range chosen {
		b.say("%s: %s", s.name, s.about)
		rows, err := s.run(ctx, b)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			continue
		}
		r := Report{Name: s.name, Machine: machine, Commit: commit, Rows: rows, Budgets: judge(s.budgets, rows)}
		if err := r.write(out); err != nil {
			errs = append(errs, err)
		}
		reports = append(reports, r)
	}
	fmt.Fprintf(stdout, "machine: %s\ncommit:  %s\n\n", machine, commit)
	table(stdout, reports)
	budgetTable(stdout, reports)
	return errors.Join(errs...)
}

// rotate calls turn once per subject in each round; each round begins with
// another subject. It gives the medians.
func (b *bench) rotate(ctx context.Context, subjects []string, turn func(subject string, s *samples) error) ([]Row, error) {
	var all samples
	for round := range b.rounds {
		for i := range subjects {
			subject := subjects[(round+i)%len(subjects)]
			b.say("  round %d of %d: %s", round+1, b.rounds, subject)
			s, err := b.undisturbed(ctx, func(s *samples) error { return turn(subject, s) })
			if err != nil {
				return nil, fmt.Errorf("%s: %w", subject, err)
			}
			all.merge(&s)
		}
	}
	return all.rows(), nil
}

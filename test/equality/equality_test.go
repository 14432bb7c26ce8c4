package equality

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

var (
	policies = flag.Int("policies", 100, "generated policies")
	inputs   = flag.Int("inputs", 100, "generated inputs for each policy")
	seed     = flag.Uint64("seed", 0, "seed of the first policy; 0 is the time")
)

// pair is one policy in both forms.
type pair struct {
	compiled, topdown policy.Decider
	report            *compile.Report
}

// newPair is an error for a policy that does not load. What check refuses for
// its author's sake has a meaning all the same.
func newPair(ctx context.Context, c bundle.Content) (*pair, error) {
	p, err := opa.Load(c)
	if err != nil {
		return nil, err
	}
	return pairOf(ctx, p)
}

func pairOf(ctx context.Context, p *opa.Program) (*pair, error) {
	prog, report, err := compile.Compile(ctx, p, compile.Config{})
	if err != nil {
		return nil, err
	}
	cfg := opa.SnapshotConfig{Revision: policy.Revision{Epoch: 1, Number: 7, Digest: p.Digest()}, Timeout: time.Minute}
	topdown, err := p.Snapshot(cfg)
	if err != nil {
		return nil, err
	}
	compiled, err := compile.Snapshot(func() (*opa.Program, error) { return p, nil }, prog, p.Catalogue().Services, cfg)
	if err != nil {
		return nil, err
	}
	return &pair{compiled.Decider, topdown.Decider, report}, nil
}

// compare is the difference between the two answers, "" when they are equal.
func (p *pair) compare(ctx context.Context, in *policy.Input, got, want *policy.Decision) string {
	p.compiled.Decide(ctx, in, got)
	p.topdown.Decide(ctx, in, want)
	if got.Verdict == want.Verdict && got.Tier == want.Tier && got.Reason == want.Reason && got.Revision == want.Revision &&
		got.Expires.Equal(want.Expires) && slices.Equal(got.Rules, want.Rules) && slices.Equal(got.Obligations, want.Obligations) {
		return ""
	}
	return cmp.Diff(want, got)
}

// content reads files in txtar form.
func content(archive string) bundle.Content {
	var c bundle.Content
	for line := range strings.Lines(archive) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(line, " --\n"), "-- "); ok && strings.HasSuffix(line, " --\n") {
			c = append(c, bundle.File{Path: name})
			continue
		}
		c[len(c)-1].Content = append(c[len(c)-1].Content, line...)
	}
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}

// tally counts what was compared, so that a generator that stopped making
// anything interesting is a failure, too.
type tally struct {
	sync.Mutex
	policies, refused, comparisons int
	outcomes                       map[string]int
	rules                          map[string]int
}

func (t *tally) add(o *tally) {
	t.Lock()
	defer t.Unlock()
	t.policies += o.policies
	t.refused += o.refused
	t.comparisons += o.comparisons
	for k, n := range o.outcomes {
		t.outcomes[k] += n
	}
	for k, n := range o.rules {
		t.rules[k] += n
	}
}

func newTally() *tally { return &tally{outcomes: map[string]int{}, rules: map[string]int{}} }

// TestGenerated compares generated policies on generated inputs.
//
//	go test ./test/equality -run Generated -policies 2000 -inputs 500
func TestGenerated(t *testing.T) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	t.Logf("-policies %d -inputs %d -seed %d", *policies, *inputs, first)
	total := newTally()
	next := make(chan uint64)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for n := range next {
				if diff := comparePolicy(t.Context(), n, total); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
	for i := range uint64(*policies) {
		if t.Failed() {
			break
		}
		next <- first + i
	}
	close(next)
	workers.Wait()
	t.Logf("%d policies (%d refused by the checks), %d comparisons, outcomes %v, rules %v",
		total.policies, total.refused, total.comparisons, total.outcomes, total.rules)
	if t.Failed() {
		return
	}
	if total.refused*5 > *policies {
		t.Errorf("%d of %d generated policies are refused: the generator no longer knows what is allowed", total.refused, *policies)
	}
	for _, outcome := range []string{"allow service-allow", "deny default-deny", "deny service-deny", "deny guardrail", "deny overridable-guardrail", "allow break-glass", "error enforcement"} {
		if total.outcomes[outcome]*500 < total.comparisons {
			t.Errorf("outcome %q came %d times in %d", outcome, total.outcomes[outcome], total.comparisons)
		}
	}
	if total.rules[compile.Compiled]*2 < total.rules[compile.Compiled]+total.rules[compile.Guarded]+total.rules[compile.Topdown] {
		t.Errorf("less than half of the rules are compiled: %v", total.rules)
	}
}

// comparePolicy makes the policy of a seed and compares it on its inputs; it
// returns the first difference in full.
func comparePolicy(ctx context.Context, n uint64, total *tally) string {
	r := rand.New(rand.NewPCG(n, 1))
	text := newPolicy(r)
	mine := newTally()
	defer func() { total.add(mine) }()
	p, err := newPair(ctx, content(text))
	var refused policy.Refused
	if errors.As(err, &refused) {
		mine.refused++
		return ""
	}
	if err != nil {
		return fmt.Sprintf("seed %d: %v", n, err)
	}
	mine.policies++
	for _, service := range p.report.Services {
		for _, rule := range service.Rules {
			mine.rules[rule.Result]++
		}
	}
	var got, want policy.Decision
	for range *inputs {
		in := newInput(r)
		mine.comparisons++
		if diff := p.compare(ctx, in, &got, &want); diff != "" {
			doc, _ := policy.EncodeInput(in)
			return fmt.Sprintf("-policies 1 -seed %d: topdown (-) and compiled (+) differ:\n%s\ninput: %s\npolicy:\n%s\nreport: %s", n, diff, doc, text, reportText(p.report))
		}
		mine.outcomes[want.Verdict.String()+" "+want.Tier.String()]++
	}
	return ""
}

func reportText(r *compile.Report) string {
	var b strings.Builder
	for _, s := range r.Services {
		for _, rule := range s.Rules {
			fmt.Fprintf(&b, "%s %s %s %s:%d %s (%d clauses) %s\n", s.Service, rule.Tier, rule.ID, rule.File, rule.Line, rule.Result, rule.Clauses, rule.Why)
		}
	}
	return b.String()
}

package simulate_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/simulate"
)

// grants is a policy of n rules, one for each caller.
func grants(b *testing.B, n int) *opa.Program {
	b.Helper()
	var rules strings.Builder
	rules.WriteString("package services.web\n")
	for i := range n {
		fmt.Fprintf(&rules, "\nallow contains \"r%d\" if {\n\tinput.source.id == \"spiffe://example.org/svc/%d\"\n\tinput.request.method == \"GET\"\n\tinput.request.segments[0] == \"orders\"\n}\n", i, i)
	}
	program, problems := opa.Check(bundle.Content{
		{Path: "data.json", Content: []byte(`{"writ":{"services":{"web":{"spiffe_ids":["spiffe://example.org/svc/web"]}}}}`)},
		{Path: "web.rego", Content: []byte(rules.String())},
	})
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	return program
}

// costless costs nothing: what is left is the simulation's own.
type costless struct{}

func (costless) Decide(_ context.Context, _ *policy.Input, out *policy.Decision) {
	out.Reset()
	out.Verdict, out.Tier = policy.Deny, policy.DefaultDeny
}

func snapshots(b *testing.B, program *opa.Program) map[string]*policy.Snapshot {
	b.Helper()
	cfg := opa.SnapshotConfig{Revision: policy.Revision{Epoch: 1, Number: 1, Digest: program.Digest()}, Timeout: time.Minute}
	topdown, err := program.Snapshot(cfg)
	if err != nil {
		b.Fatal(err)
	}
	compiled, _, err := compile.Compile(context.Background(), program, compile.Config{})
	if err != nil {
		b.Fatal(err)
	}
	fast, err := compile.Snapshot(func() (*opa.Program, error) { return program, nil }, compiled, program.Catalogue().Services, cfg)
	if err != nil {
		b.Fatal(err)
	}
	free := *topdown
	free.Decider = costless{}
	return map[string]*policy.Snapshot{"topdown": topdown, "compiled": fast, "free": &free}
}

// recordings are the inputs of a benchmark, half of them allowed.
func recordings() []simulate.Recorded {
	var list []simulate.Recorded
	for i := range 4096 {
		in := &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest, Source: policy.Source{ID: fmt.Sprintf("spiffe://example.org/svc/%d", i%2000), TrustDomain: "example.org", Authn: policy.AuthnMTLS},
			Destination: policy.Destination{Service: "web", ID: "spiffe://example.org/svc/web", Port: 8443},
			Request:     policy.Request{Protocol: policy.HTTP, Method: []string{"GET", "POST"}[i/2%2], Host: "web", Path: fmt.Sprintf("/orders/%d", i), Segments: []string{"orders", fmt.Sprint(i)}, ContentLength: -1, Headers: policy.MapValues{}, Query: policy.MapValues{}},
			TokenStatus: policy.TokenAbsent, Time: time.Unix(1_800_000_000+int64(i), 0).UTC(),
		}
		list = append(list, simulate.Recorded{ID: fmt.Sprint(i), Input: in, Mode: policy.Enforce})
	}
	return list
}

// BenchmarkRun replays records from memory through candidate and baseline, on
// all processors: two decisions a record. BenchmarkDecide is one decision by
// the same engine and nothing else, on one.
func BenchmarkRun(b *testing.B) {
	for _, n := range []int{10, 1000} {
		program := grants(b, n)
		list := recordings()
		for engine, s := range snapshots(b, program) {
			for i := range list {
				s.Decider.Decide(context.Background(), list[i].Input, &list[i].Decision)
			}
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) {
				side := simulate.Side{Decider: s.Decider, Services: s.Services, Digest: program.Digest()}
				left := b.N
				b.ReportAllocs()
				b.ResetTimer()
				report, err := simulate.Run(context.Background(), simulate.Config{
					Candidate: side, Baseline: &side, At: time.Unix(1_800_000_000, 0),
					Next: func(r *simulate.Recorded) error {
						if left == 0 {
							return io.EOF
						}
						left--
						*r = list[left%len(list)]
						return nil
					},
				})
				if err != nil {
					b.Fatal(err)
				}
				if report.Same != uint64(b.N) || report.Mismatched != 0 {
					b.Fatalf("%+v", report)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}

// BenchmarkDecide is the peer of BenchmarkRun.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000} {
		program := grants(b, n)
		list := recordings()
		for engine, s := range snapshots(b, program) {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) {
				b.ReportAllocs()
				var out policy.Decision
				i := 0
				for b.Loop() {
					s.Decider.Decide(context.Background(), list[i%len(list)].Input, &out)
					i++
				}
			})
		}
	}
}

package simulate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// decide is a Decider of one function.
type decide func(in *policy.Input, out *policy.Decision)

func (f decide) Decide(_ context.Context, in *policy.Input, out *policy.Decision) {
	out.Reset()
	f(in, out)
}

// always answers the same.
func always(v policy.Verdict, tier policy.Tier, rules ...string) decide {
	return func(_ *policy.Input, out *policy.Decision) {
		out.Verdict, out.Tier = v, tier
		for _, id := range rules {
			out.Rules = append(out.Rules, policy.Rule{ID: id, File: "web.rego", Line: 1})
		}
	}
}

func decision(d decide) policy.Decision {
	var out policy.Decision
	d(nil, &out)
	return out
}

var (
	allowed   = always(policy.Allow, policy.ServiceAllow, "reads")
	denied    = always(policy.Deny, policy.DefaultDeny)
	undefined = always(policy.Undefined, policy.Enforcement)
	failed    = always(policy.Error, policy.Enforcement)
	begin     = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
)

func request(source, method, path string) *policy.Input {
	in := &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest, Source: policy.Source{ID: source},
		Destination: policy.Destination{Service: "web", ID: "spiffe://example.org/svc/web"},
		Request:     policy.Request{Protocol: policy.HTTP, Method: method, Path: path, ContentLength: -1},
		Time:        begin,
	}
	in.Request.Segments, _ = policy.SplitPath(nil, path, true)
	return in
}

// from hands out records in their order.
func from(records ...Recorded) func(*Recorded) error {
	i := -1
	return func(r *Recorded) error {
		if i++; i == len(records) {
			return io.EOF
		}
		*r = records[i]
		return nil
	}
}

func run(t testing.TB, cfg Config) *Report {
	t.Helper()
	cfg.At = begin
	report, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Each verdict of the baseline against each of the candidate.
func TestFourVerdicts(t *testing.T) {
	sides := []struct {
		name   string
		decide decide
		change Change
	}{{"allow", allowed, NewlyAllowed}, {"deny", denied, NewlyDenied}, {"undefined", undefined, NewlyUndefined}, {"error", failed, NewlyError}}
	for _, was := range sides {
		for _, is := range sides {
			for _, recorded := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s to %s, recorded %v", was.name, is.name, recorded), func(t *testing.T) {
					cfg := Config{Candidate: Side{Decider: is.decide}, Baseline: &Side{Decider: was.decide}}
					rec := Recorded{ID: "d1", Input: request("spiffe://example.org/svc/a", "GET", "/x"), Decision: decision(was.decide), Mode: policy.Enforce}
					if cfg.Next = from(rec); recorded {
						cfg.Baseline = nil
					}
					got := run(t, cfg)
					want := is.change
					if was.name == is.name {
						want = Same
					}
					if *got.counter(want) != 1 || got.Replayed != 1 || got.NotReplayable != 0 || got.Mismatched+got.Drifted != 0 {
						t.Errorf("report %+v: want one %s", got, want)
					}
					if blocked := was.name == "allow" && is.name != "allow"; (got.Blocked == 1) != blocked {
						t.Errorf("blocked %d, want %v", got.Blocked, blocked)
					}
					if passing := was.name != "allow" && is.name == "allow"; (got.Passing == 1) != passing {
						t.Errorf("passing %d, want %v", got.Passing, passing)
					}
					if want == Same {
						return
					}
					if len(got.Groups) != 1 {
						t.Fatalf("groups %+v", got.Groups)
					}
					g := got.Groups[0]
					if g.Change != want || g.Was != was.name || g.Is != is.name || g.Example.DecisionID != "d1" || g.Example.Baseline.Verdict != was.name || g.Example.Candidate.Verdict != is.name {
						t.Errorf("group %+v", g)
					}
				})
			}
		}
	}
}

// The verdict stands, and something else changes.
func TestSameVerdict(t *testing.T) {
	service := func(mode policy.Mode) map[string]policy.Service {
		return map[string]policy.Service{"web": {Name: "web", SPIFFEIDs: []string{"spiffe://example.org/svc/web"}, Mode: mode, ObserveUntil: begin.Add(time.Hour)}}
	}
	for name, tc := range map[string]struct {
		was, is          Side
		want             Change
		blocked, passing uint64
	}{
		"tier":  {was: Side{Decider: denied}, is: Side{Decider: always(policy.Deny, policy.Guardrail, "g")}, want: TierChanged},
		"rules": {was: Side{Decider: allowed}, is: Side{Decider: always(policy.Allow, policy.ServiceAllow, "writes")}, want: RulesChanged},
		"line": {was: Side{Decider: allowed}, is: Side{Decider: decide(func(in *policy.Input, out *policy.Decision) {
			allowed(in, out)
			out.Rules[0].Line = 7
		})}, want: Same},
		"enforced now":        {was: Side{Decider: denied, Services: service(policy.Observe)}, is: Side{Decider: denied, Services: service(policy.Enforce)}, want: ModeChanged, blocked: 1},
		"observed now":        {was: Side{Decider: denied, Services: service(policy.Enforce)}, is: Side{Decider: denied, Services: service(policy.Observe)}, want: ModeChanged, passing: 1},
		"denied and observed": {was: Side{Decider: allowed, Services: service(policy.Observe)}, is: Side{Decider: denied, Services: service(policy.Observe)}, want: NewlyDenied},
		"no such service":     {was: Side{Decider: allowed, Services: service(policy.Enforce)}, is: Side{Decider: allowed, Services: map[string]policy.Service{}}, want: NewlyDenied, blocked: 1},
		"of another workload": {was: Side{Decider: allowed, Services: service(policy.Enforce)}, is: Side{Decider: allowed, Services: map[string]policy.Service{"web": {}}}, want: NewlyDenied, blocked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			rec := Recorded{ID: "d", Input: request("a", "GET", "/x"), Decision: decision(tc.was.Decider.(decide))}
			got := run(t, Config{Next: from(rec), Candidate: tc.is, Baseline: &tc.was})
			if *got.counter(tc.want) != 1 || got.Blocked != tc.blocked || got.Passing != tc.passing {
				t.Errorf("report %+v: want one %s, %d blocked and %d passing", got, tc.want, tc.blocked, tc.passing)
			}
		})
	}
}

// What was recorded is compared with what its own content decides now.
func TestMismatch(t *testing.T) {
	digest := [32]byte{1}
	rec := Recorded{ID: "d", Input: request("a", "GET", "/x"), Decision: decision(denied)}
	rec.Decision.Revision.Digest = digest
	other, timedOut := rec, rec
	other.Decision.Revision.Digest = [32]byte{2}
	timedOut.Decision = decision(failed)
	got := run(t, Config{Next: from(rec, other, timedOut), Candidate: Side{Decider: allowed}, Baseline: &Side{Decider: allowed, Digest: digest}})
	if got.Mismatched != 1 || got.Drifted != 1 || len(got.Mismatches) != 1 || got.Mismatches[0].Recorded.Verdict != "deny" || got.Mismatches[0].Now.Verdict != "allow" {
		t.Errorf("report %+v: want one mismatch, one drift", got)
	}
}

func TestNotReplayable(t *testing.T) {
	none, a, ab, all := &policy.Reads{}, &policy.Reads{Headers: []string{"x-a"}}, &policy.Reads{Headers: []string{"x-a"}, Query: []string{"b"}}, &policy.Reads{AllHeaders: true}
	in := request("a", "GET", "/x")
	for name, tc := range map[string]struct {
		rec            Recorded
		reads          *policy.Reads
		recorded       bool
		reason, detail string
	}{
		"whole":                    {rec: Recorded{Input: in, Reads: a}, reads: a},
		"no more is read":          {rec: Recorded{Input: in, Reads: ab}, reads: a},
		"a header was not read":    {rec: Recorded{Input: in, Reads: none}, reads: a, reason: NotRecorded, detail: "headers.x-a"},
		"a parameter was not read": {rec: Recorded{Input: in, Reads: a}, reads: ab, reason: NotRecorded, detail: "query.b"},
		"all headers are read":     {rec: Recorded{Input: in, Reads: a}, reads: all, reason: NotRecorded, detail: "headers"},
		"all headers were read":    {rec: Recorded{Input: in, Reads: all}, reads: a},
		"revision not known":       {rec: Recorded{Input: in}, reads: a, reason: UnknownRevision, detail: "none"},
		"not known, nothing read":  {rec: Recorded{Input: in}, reads: none},
		"omitted and read":         {rec: Recorded{Input: in, Reads: a, Missing: []string{"headers.x-a"}}, reads: a, reason: Omitted, detail: "headers.x-a"},
		"omitted, not read":        {rec: Recorded{Input: in, Reads: a, Missing: []string{"headers.x-b", "query.q"}}, reads: a},
		"some headers omitted":     {rec: Recorded{Input: in, Reads: all, Missing: []string{"headers"}}, reads: a, reason: Omitted, detail: "headers"},
		"some omitted, none read":  {rec: Recorded{Input: in, Reads: all, Missing: []string{"headers", "query"}}, reads: none},
		"tokens omitted":           {rec: Recorded{Input: in, Reads: none, Missing: []string{"tokens"}}, reads: none, reason: Omitted, detail: "tokens"},
		"path omitted":             {rec: Recorded{Input: in, Reads: none, Missing: []string{"path"}}, reads: none, reason: Omitted, detail: "path"},
		"erased":                   {rec: Recorded{Problem: Erased}, reads: none, reason: Erased},
		"malformed":                {rec: Recorded{Problem: Malformed, Detail: "no layer"}, reads: none, reason: Malformed, detail: "no layer"},
		"not by policy":            {rec: Recorded{Input: in, Decision: decision(always(policy.Deny, policy.Enforcement))}, reads: none, recorded: true, reason: NotByPolicy},
		"no policy, header read":   {rec: Recorded{Input: in, Reads: a, Decision: decision(always(policy.Deny, policy.Enforcement))}, reads: a, reason: NotRecorded, detail: "headers.x-a"},
		"no policy, none read":     {rec: Recorded{Input: in, Decision: decision(always(policy.Deny, policy.Enforcement))}, reads: none},
	} {
		t.Run(name, func(t *testing.T) {
			// What either side reads matters.
			reading := Side{Decider: allowed, Reads: func(policy.Destination) *policy.Reads { return tc.reads }}
			for _, cfg := range []Config{{Candidate: reading, Baseline: &Side{Decider: allowed}}, {Candidate: Side{Decider: allowed}, Baseline: &reading}} {
				if cfg.Next = from(tc.rec); tc.recorded {
					cfg.Baseline = nil
				}
				got := run(t, cfg)
				want := []Reason{}
				if tc.reason != "" {
					want = append(want, Reason{Reason: tc.reason, Detail: tc.detail, Count: 1})
				}
				if diff := cmp.Diff(want, got.Reasons); diff != "" || got.Replayed+got.NotReplayable != 1 {
					t.Errorf("replayed %d, reasons (-want +got):\n%s", got.Replayed, diff)
				}
			}
		})
	}
}

// A request that was refused before policy was asked is nobody's change.
func TestRefused(t *testing.T) {
	got := run(t, Config{Next: from(Recorded{Problem: Refused}), Candidate: Side{Decider: allowed}})
	if got.Records != 1 || got.Refused != 1 || got.NotReplayable != 0 || len(got.Reasons) != 0 {
		t.Errorf("report %+v: want one refused", got)
	}
}

// byPath denies some and allows some, so that there is something to group.
func byPath(salt byte) decide {
	return func(in *policy.Input, out *policy.Decision) {
		n := salt
		for _, s := range []string{in.Source.ID, in.Request.Path, in.Request.Method} {
			for i := range len(s) {
				n = n*31 + s[i]
			}
		}
		[]decide{allowed, denied, undefined, failed}[n%4](in, out)
	}
}

// stream makes n records of many callers and paths, on the fly.
func stream(n int) func(*Recorded) error {
	i := 0
	return func(r *Recorded) error {
		if i == n {
			return io.EOF
		}
		in := request(fmt.Sprintf("spiffe://example.org/svc/%d", i%7000), []string{"GET", "POST"}[i%2], fmt.Sprintf("/a%d/%d/%s/x%d", i%3, i, string(rune('a'+i%20)), i%50))
		in.Time = begin.Add(time.Duration(i) * time.Second)
		*r = Recorded{ID: fmt.Sprint(i), Input: in, Decision: decision(allowed), Mode: policy.Enforce}
		i++
		return nil
	}
}

// The report is the same whoever was faster.
func TestDeterministic(t *testing.T) {
	var want []byte
	for _, workers := range []int{1, 2, 8} {
		got, err := json.Marshal(run(t, Config{Next: stream(20_000), Candidate: Side{Decider: byPath(1)}, Baseline: &Side{Decider: byPath(2)}, Workers: workers}))
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("with %d workers (-one +these):\n%s", workers, diff)
		}
	}
}

// Memory does not grow with the records.
func TestMemoryIsBounded(t *testing.T) {
	const n = 300_000
	var first, most uint64
	report := run(t, Config{
		Next: stream(n), Candidate: Side{Decider: byPath(1)}, Baseline: &Side{Decider: byPath(2)},
		Progress: func(records uint64) {
			if records%(100*batchSize) != 0 {
				return
			}
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if first == 0 {
				first = m.HeapAlloc
			}
			most = max(most, m.HeapAlloc)
		},
	})
	if report.Records != n || len(report.Groups) > maxGroups || report.Ungrouped == 0 {
		t.Errorf("%d records, %d groups, %d ungrouped", report.Records, len(report.Groups), report.Ungrouped)
	}
	if most > first+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", first, most)
	}
	var grouped uint64
	for _, g := range report.Groups {
		grouped += g.Count
	}
	if changed := report.Replayed - report.Same; grouped+report.Ungrouped != changed {
		t.Errorf("%d in groups and %d beyond, of %d changes", grouped, report.Ungrouped, changed)
	}
}

func TestRunEnds(t *testing.T) {
	broken := errors.New("broken")
	n := 0
	_, err := Run(context.Background(), Config{Candidate: Side{Decider: allowed}, Next: func(r *Recorded) error {
		if n++; n == 1000 {
			return broken
		}
		*r = Recorded{Input: request("a", "GET", "/")}
		return nil
	}})
	if !errors.Is(err, broken) {
		t.Errorf("error %v: want the reader's", err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	_, err = Run(ctx, Config{Candidate: Side{Decider: allowed}, Next: func(r *Recorded) error {
		cancel()
		*r = Recorded{Input: request("a", "GET", "/")}
		return nil
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v: want that it was canceled", err)
	}

	report := run(t, Config{Candidate: Side{Decider: allowed}, Next: stream(10_000), Limit: 777})
	if report.Records != 777 {
		t.Errorf("%d records, want the limit", report.Records)
	}
	if _, err := Run(context.Background(), Config{}); err == nil {
		t.Error("an empty configuration runs")
	}
}

// TestSimulationAsksNobody: neither side of a simulation has a way out.
func TestSimulationAsksNobody(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer server.Close()
	program, err := opa.Load(bundle.Content{
		{Path: "data.json", Content: fmt.Appendf(nil, `{"writ":{"services":{"web":{"spiffe_ids":["spiffe://example.org/svc/web"]}},"outside":{"http.send":{"hosts":[%q]}}}}`, server.URL)},
		{Path: "web.rego", Content: fmt.Appendf(nil, "package services.web\n\nallow if http.send({\"method\": \"GET\", \"url\": %q}).status_code == 200\n", server.URL)},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := program.Snapshot(opa.SnapshotConfig{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	got := run(t, Config{Candidate: Side{Decider: s.Decider}, Baseline: &Side{Decider: s.Decider},
		Next: from(Recorded{ID: "d1", Input: request("spiffe://example.org/svc/a", "GET", "/"), Decision: decision(allowed), Mode: policy.Enforce})})
	if want := []Reason{{Reason: LooksOutside, Detail: "http.send", Count: 1, Example: "d1"}}; !cmp.Equal(got.Reasons, want) || got.Replayed != 0 || asked.Load() != 0 {
		t.Errorf("asked %d times, report %+v", asked.Load(), got)
	}
}

// TestLooksOutside: what a side cannot ask is not replayed, and is neither a
// change nor a reason to distrust the baseline.
func TestLooksOutside(t *testing.T) {
	asks := func(in *policy.Input, out *policy.Decision) {
		if failed(in, out); in.Request.Path == "/risk" {
			out.Unasked = "http.send"
			return
		}
		allowed(in, out)
	}
	for name, cfg := range map[string]Config{
		"candidate":              {Candidate: Side{Decider: decide(asks)}, Baseline: &Side{Decider: allowed}},
		"baseline":               {Candidate: Side{Decider: allowed}, Baseline: &Side{Decider: decide(asks)}},
		"both":                   {Candidate: Side{Decider: decide(asks)}, Baseline: &Side{Decider: decide(asks)}},
		"candidate, as recorded": {Candidate: Side{Decider: decide(asks)}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Next = from(
				Recorded{ID: "d1", Input: request("spiffe://example.org/svc/a", "GET", "/risk"), Decision: decision(allowed), Mode: policy.Enforce},
				Recorded{ID: "d2", Input: request("spiffe://example.org/svc/a", "GET", "/x"), Decision: decision(allowed), Mode: policy.Enforce},
			)
			got := run(t, cfg)
			if got.Replayed != 1 || got.Same != 1 || got.NotReplayable != 1 || got.Mismatched+got.Drifted+got.NewlyError != 0 {
				t.Errorf("report %+v", got)
			}
			if want := []Reason{{Reason: LooksOutside, Detail: "http.send", Count: 1, Example: "d1"}}; !cmp.Equal(got.Reasons, want) {
				t.Errorf("reasons %+v, want %+v", got.Reasons, want)
			}
		})
	}
}

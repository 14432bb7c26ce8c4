package audit

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// pick takes one of list; a short list makes rules match now and then.
func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// awkward is text that the record has to alter or withhold, now and then.
func awkward(r *rand.Rand, plain ...string) string {
	switch r.IntN(60) {
	case 0:
		return "\xff" + pick(r, plain...)
	case 1:
		return strings.Repeat("long", 700)
	}
	return pick(r, plain...)
}

func randomValues(r *rand.Rand) policy.Values {
	if r.IntN(8) == 0 {
		return nil
	}
	m := policy.MapValues{}
	for range r.IntN(5) {
		name := pick(r, "x-a", "x-b", "x-c", "x-secret", "authorization", "cookie", "page")
		m[name] = []string{}
		for range r.IntN(3) {
			m[name] = append(m[name], pick(r, awkward(r, "red", "blue", "1"), "Bearer abcdefg"))
		}
	}
	return m
}

func randomReads(r *rand.Rand) *policy.Reads {
	names := func() (list []string) {
		for _, n := range []string{"x-a", "x-b", "x-secret", "authorization", "page"} {
			if r.IntN(2) == 0 {
				list = append(list, n)
			}
		}
		return list
	}
	return &policy.Reads{Headers: names(), Query: names(), AllHeaders: r.IntN(4) == 0, AllQuery: r.IntN(4) == 0}
}

func randomInput(r *rand.Rand) *policy.Input {
	in := &policy.Input{
		Direction: pick(r, policy.Inbound, policy.Outbound), Layer: pick(r, policy.LayerRequest, policy.LayerRequest, policy.LayerConnection),
		Source:      policy.Source{ID: awkward(r, "spiffe://example.org/svc/a", ""), TrustDomain: awkward(r, "example.org"), Path: awkward(r, "/svc/a"), Authn: pick(r, policy.AuthnMTLS, policy.AuthnNone)},
		Destination: policy.Destination{Service: awkward(r, "web"), ID: awkward(r, "spiffe://example.org/svc/web"), Port: r.IntN(65536)},
		Connection:  policy.Connection{PeerIP: awkward(r, "10.0.0.1"), ClientIP: awkward(r, "10.0.0.2"), TLSVersion: awkward(r, "1.3"), SNI: awkward(r, "web"), ALPN: awkward(r, "h2"), PeerPort: 7},
		TokenStatus: pick(r, policy.TokenAbsent, policy.TokenInvalid), Time: time.Unix(0, 1+r.Int64N(1<<62)).UTC(),
	}
	if r.IntN(10) == 0 {
		in.TokenStatus, in.Tokens = policy.TokenValid, []policy.Token{{Subject: "s"}}
	}
	if in.Layer == policy.LayerConnection {
		return in
	}
	q := &in.Request
	*q = policy.Request{
		Protocol: pick(r, policy.HTTP, policy.GRPC), Method: awkward(r, "GET", "POST"), Host: awkward(r, "web"),
		Path: pick(r, "/", "/a", "/a/", "/a%2Fb/c", "//a", "/é", "/caf%C3%A9", "/"+strings.Repeat("p", 9000)), ContentLength: r.Int64N(3) - 1,
		Headers: randomValues(r), Query: randomValues(r),
	}
	q.Segments, _ = policy.SplitPath(nil, q.Path, true)
	if q.Protocol == policy.GRPC {
		q.GRPCService, q.GRPCMethod = awkward(r, "pkg.S"), awkward(r, "M")
	}
	return in
}

// narrowed is what a policy that reads no more than reads can see of in.
func narrowed(in *policy.Input, reads *policy.Reads) *policy.Input {
	part := func(v policy.Values, names []string, all bool) policy.Values {
		if v == nil || all {
			return v
		}
		m := policy.MapValues{}
		for _, n := range names {
			if vs := v.Get(n); vs != nil {
				m[n] = vs
			}
		}
		return m
	}
	out := *in
	out.Request.Headers = part(in.Request.Headers, reads.Headers, reads.AllHeaders)
	out.Request.Query = part(in.Request.Query, reads.Query, reads.AllQuery)
	return &out
}

func seen(t *testing.T, in *policy.Input) string {
	t.Helper()
	b, err := policy.EncodeInput(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An input that was recorded without omissions is told to policy again as it
// was; one that was not says what is missing.
func TestInputOfIsWhatWasDecided(t *testing.T) {
	whole, lacking := 0, 0
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 5))
		in, reads := randomInput(r), randomReads(r)
		var allowed *Permit
		if r.IntN(3) > 0 {
			allowed = permit(t, []string{"x-*"}, []string{"*"})
		}
		d := &policy.Decision{Verdict: policy.Allow, Tier: policy.ServiceAllow}
		ev := unmarshal(t, encode(NewEncoder(allowed), &Event{
			Kind: auditv1.Kind_KIND_DECISION, Outcome: auditv1.Outcome_OUTCOME_ALLOW, Input: in, Decision: d, Reads: reads,
		}, 1))
		got, missing, err := InputOf(ev)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(ev.Omitted, missing); diff != "" {
			t.Fatalf("seed %d: missing (-omitted +got):\n%s", seed, diff)
		}
		diff := cmp.Diff(seen(t, narrowed(in, reads)), seen(t, got))
		switch {
		case len(missing) > 0:
			lacking++
		case diff != "":
			t.Fatalf("seed %d: nothing is missing, and the input is another (-decided +rebuilt):\n%s", seed, diff)
		default:
			whole++
		}
	}
	if whole < 1000 || lacking < 1000 {
		t.Errorf("%d whole and %d lacking inputs: the test tests little", whole, lacking)
	}
}

const replayPolicy = `package services.web

allow contains "reds" if {
	input.request.headers["x-a"][_] == "red"
	input.request.segments[0] == "a"
}

allow contains "pages" if {
	input.request.query.page[0] == "1"
	input.source.id == "spiffe://example.org/svc/a"
}

deny contains "posts" if {
	input.request.method == "POST"
	not input.request.headers["x-b"]
}
`

// OPA decides a rebuilt input as it decided the input.
func TestInputOfDecidesEqually(t *testing.T) {
	catalogue := `{"writ":{"services":{"web":{"spiffe_ids":["spiffe://example.org/svc/web"],"mode":"enforce"}}}}`
	program, problems := opa.Check(bundle.Content{{Path: "data.json", Content: []byte(catalogue)}, {Path: "web.rego", Content: []byte(replayPolicy)}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	snapshot, err := program.Snapshot(opa.SnapshotConfig{Revision: policy.Revision{Epoch: 1, Number: 2, Digest: program.Digest()}})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEncoder(permit(t, []string{"x-*"}, []string{"page"}))
	verdicts := map[policy.Tier]int{}
	for seed := range uint64(2000) {
		in := randomInput(rand.New(rand.NewPCG(seed, 6)))
		var was, is policy.Decision
		snapshot.Decider.Decide(context.Background(), in, &was)
		ev := unmarshal(t, encode(e, &Event{
			Kind: auditv1.Kind_KIND_DECISION, Outcome: map[policy.Verdict]auditv1.Outcome{
				policy.Allow: auditv1.Outcome_OUTCOME_ALLOW, policy.Deny: auditv1.Outcome_OUTCOME_DENY,
				policy.Undefined: auditv1.Outcome_OUTCOME_UNDEFINED, policy.Error: auditv1.Outcome_OUTCOME_ERROR,
			}[was.Verdict], Input: in, Decision: &was, Reads: &snapshot.Reads,
		}, 1))
		recorded, err := DecisionOf(ev)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if recorded.Revision != was.Revision || !SameDecision(recorded, &was) {
			t.Fatalf("seed %d: recorded %+v, was %+v", seed, recorded, was)
		}
		rebuilt, missing, err := InputOf(ev)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(missing) > 0 {
			continue
		}
		snapshot.Decider.Decide(context.Background(), rebuilt, &is)
		if diff := cmp.Diff(was, is); diff != "" {
			t.Fatalf("seed %d: decided (-then +now):\n%s", seed, diff)
		}
		verdicts[is.Tier]++
	}
	if len(verdicts) < 3 {
		t.Errorf("tiers %v: the test tests little", verdicts)
	}
}

// What no enforcement point writes is refused, and what is no decision is told
// from it.
func TestInputOfRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*auditv1.Event)
		not    bool
	}{
		"a lifecycle event":      {func(ev *auditv1.Event) { ev.Kind = auditv1.Kind_KIND_LIFECYCLE }, true},
		"a refused request":      {func(ev *auditv1.Event) { ev.Outcome = auditv1.Outcome_OUTCOME_REFUSED }, true},
		"an outcome of acts":     {func(ev *auditv1.Event) { ev.Outcome = auditv1.Outcome_OUTCOME_SUCCESS }, false},
		"a tier that is none":    {func(ev *auditv1.Event) { ev.Tier = 8 }, false},
		"no time":                {func(ev *auditv1.Event) { ev.Time = 0 }, false},
		"no layer":               {func(ev *auditv1.Event) { ev.Layer = "" }, false},
		"no request":             {func(ev *auditv1.Event) { ev.Request = nil }, false},
		"a request of no layer":  {func(ev *auditv1.Event) { ev.Layer = policy.LayerConnection }, false},
		"a path that is refused": {func(ev *auditv1.Event) { ev.Request.Path = "/a/../b" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			ev := wantSample()
			tc.change(ev)
			in, _, err := InputOf(ev)
			if err == nil || in != nil || errors.Is(err, ErrNotDecided) != tc.not {
				t.Errorf("InputOf: %v, %v", in, err)
			}
		})
	}
	ev := wantSample()
	ev.Revision.Digest = ev.Revision.Digest[:31]
	if d, err := DecisionOf(ev); err == nil {
		t.Errorf("DecisionOf with a short digest: %+v", d)
	}
}

func TestSameDecision(t *testing.T) {
	long := strings.Repeat("ä", maxRule)
	decision := func(change func(*policy.Decision)) *policy.Decision {
		d := &policy.Decision{Verdict: policy.Deny, Tier: policy.ServiceDeny, Rules: []policy.Rule{{ID: long, File: "web.rego", Line: 3}, {ID: "b"}}}
		change(d)
		return d
	}
	same := decision(func(*policy.Decision) {})
	recorded := decision(func(d *policy.Decision) { d.Rules[0].ID = long[:maxRule] })
	if !SameDecision(recorded, same) {
		t.Error("a decision whose record was cut is not the same")
	}
	for name, change := range map[string]func(*policy.Decision){
		"verdict": func(d *policy.Decision) { d.Verdict = policy.Undefined },
		"tier":    func(d *policy.Decision) { d.Tier = policy.DefaultDeny },
		"rule":    func(d *policy.Decision) { d.Rules[1].ID = "c" },
		"line":    func(d *policy.Decision) { d.Rules[0].Line = 4 },
		"file":    func(d *policy.Decision) { d.Rules[0].File = "api.rego" },
		"number":  func(d *policy.Decision) { d.Rules = d.Rules[:1] },
	} {
		if SameDecision(recorded, decision(change)) {
			t.Errorf("another %s is the same decision", name)
		}
	}
}

// FuzzInputOf: whatever an event holds, it gives an input that can be decided
// or an error.
func FuzzInputOf(f *testing.F) {
	seed, err := proto.Marshal(wantSample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		ev := new(auditv1.Event)
		if proto.Unmarshal(b, ev) != nil {
			return
		}
		in, _, err := InputOf(ev)
		if (in == nil) == (err == nil) {
			t.Fatalf("input %v, error %v", in, err)
		}
		if in != nil {
			if _, err := policy.EncodeInput(in); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := DecisionOf(ev); (d == nil) == (err == nil) {
			t.Fatalf("decision %v, error %v", d, err)
		}
	})
}

// BenchmarkInputOf is what it costs to read a record of a usual size.
func BenchmarkInputOf(b *testing.B) {
	ev := sample()
	ev.Input.Request.Path = "/v1/orders/1234"
	event := encode(NewEncoder(permit(b, []string{"x-team"}, []string{"page"})), ev, 1)
	b.ReportAllocs()
	for b.Loop() {
		m := new(auditv1.Event)
		if err := proto.Unmarshal(event, m); err != nil {
			b.Fatal(err)
		}
		if _, _, err := InputOf(m); err != nil {
			b.Fatal(err)
		}
		if _, err := DecisionOf(m); err != nil {
			b.Fatal(err)
		}
	}
}

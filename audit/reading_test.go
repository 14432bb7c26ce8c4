package audit

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// plainValues is any Values as a map, so that two kinds compare.
func plainValues(v policy.Values) policy.MapValues {
	m := policy.MapValues{}
	if v != nil {
		v.Each(func(name string, values []string) bool {
			m[name] = slices.Concat([]string{}, values)
			if got := v.Get(name); !slices.Equal(got, values) || got == nil {
				panic("Get and Each differ")
			}
			return true
		})
	}
	return m
}

// sameReading compares Read with InputOf and DecisionOf.
func sameReading(t *testing.T, r *Reading, event []byte) {
	t.Helper()
	ev := new(auditv1.Event)
	unreadable := proto.Unmarshal(event, ev) != nil
	got := r.Read(event)
	if unreadable {
		if got == nil {
			t.Fatalf("%x is read, and is no event", event)
		}
		return
	}
	in, missing, err := InputOf(ev)
	var d *policy.Decision
	if err == nil {
		d, err = DecisionOf(ev)
	}
	if (err == nil) != (got == nil) || errors.Is(err, ErrNotDecided) != errors.Is(got, ErrNotDecided) {
		t.Fatalf("%x: Read %v, InputOf %v", event, got, err)
	}
	if err != nil {
		return
	}
	a, b := *in, r.Input
	a.Request.Headers, a.Request.Query = plainValues(a.Request.Headers), plainValues(a.Request.Query)
	b.Request.Headers, b.Request.Query = plainValues(b.Request.Headers), plainValues(b.Request.Query)
	for _, diff := range []string{
		cmp.Diff(a, b, cmpopts.EquateEmpty()), cmp.Diff(*d, r.Decision, cmpopts.EquateEmpty()),
		cmp.Diff(missing, r.Missing, cmpopts.EquateEmpty()), cmp.Diff(policy.Mode(ev.Mode), r.Mode),
		cmp.Diff(slices.Sorted(maps.Keys(a.Request.Headers.(policy.MapValues))), slices.Sorted(maps.Keys(b.Request.Headers.(policy.MapValues)))),
	} {
		if diff != "" {
			t.Fatalf("%x (-InputOf +Read):\n%s", event, diff)
		}
	}
}

// One Reading reads what InputOf and DecisionOf read, whatever it read before.
func TestReading(t *testing.T) {
	r := new(Reading)
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		in, reads := randomInput(rnd), randomReads(rnd)
		in.Source.Serial = []byte{1, 2}[:rnd.IntN(3)]
		d := &policy.Decision{Tier: policy.Tier(rnd.IntN(9)), Reason: awkward(rnd, "why", "")}
		for range rnd.IntN(4) {
			d.Rules = append(d.Rules, policy.Rule{ID: awkward(rnd, "a", "b"), File: pick(rnd, "f.rego", ""), Line: rnd.IntN(3)})
		}
		if rnd.IntN(4) > 0 {
			d.Revision = policy.Revision{Epoch: 1, Number: rnd.Uint64(), Digest: [32]byte{byte(rnd.IntN(2)), 1}}
		}
		ev := &Event{
			Kind: auditv1.Kind(1 + rnd.IntN(2)*rnd.IntN(3)), Outcome: auditv1.Outcome(rnd.IntN(8)), Mode: policy.Mode(rnd.IntN(3)), Enforced: true,
			Input: in, Decision: d, Reads: reads, TraceID: "t", Latency: 5,
		}
		sameReading(t, r, encode(NewEncoder(permit(t, []string{"x-*"}, []string{"*"})), ev, seed+1))
	}
}

func TestReadingAllocates(t *testing.T) {
	event := encode(NewEncoder(permit(t, []string{"x-team"}, []string{"page"})), sample(), 1)
	r := new(Reading)
	read := func() {
		if err := r.Read(event); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := testing.AllocsPerRun(100, read); n > 2 {
		t.Errorf("%v allocations, want the text of the event and little else", n)
	}
}

// FuzzReading: however an event is written, it is read as protobuf reads it.
func FuzzReading(f *testing.F) {
	whole, err := proto.Marshal(wantSample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(append(slices.Clone(whole), whole...))
	f.Add(encode(NewEncoder(permit(f, []string{"x-*"}, []string{"*"})), sample(), 7))
	f.Fuzz(func(t *testing.T, event []byte) {
		r := new(Reading)
		sameReading(t, r, event)
		sameReading(t, r, whole)
		sameReading(t, r, event)
	})
}

func BenchmarkReading(b *testing.B) {
	ev := sample()
	ev.Input.Request.Path = "/v1/orders/1234"
	event := encode(NewEncoder(permit(b, []string{"x-team"}, []string{"page"})), ev, 1)
	r := new(Reading)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Read(event); err != nil {
			b.Fatal(err)
		}
	}
}

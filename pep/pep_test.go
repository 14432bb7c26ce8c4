package pep_test

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
)

const (
	service = "orders"
	ownID   = "spiffe://example.org/svc/orders"
)

func newEnforcer(t testing.TB, rec *peptest.Recorder, change func(*pep.Config)) *pep.Enforcer {
	t.Helper()
	cfg := pep.Config{Service: service, ID: spiffeid.RequireFromString(ownID), Recorder: rec}
	if change != nil {
		change(&cfg)
	}
	e, err := pep.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func request() *policy.Input {
	return &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest,
		Destination: policy.Destination{Service: "chosen-by-the-caller"},
		Request:     policy.Request{Protocol: policy.HTTP, Method: "GET", Path: "/", Headers: policy.MapValues{}},
	}
}

func TestEnforce(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	observing := func(until time.Time) func(*policy.Snapshot) {
		return func(s *policy.Snapshot) {
			s.Services[service] = policy.Service{Name: service, SPIFFEIDs: []string{ownID}, Mode: policy.Observe, ObserveUntil: until}
		}
	}
	for _, tc := range []struct {
		name     string
		decider  policy.Decider
		snapshot func(*policy.Snapshot)
		cfg      func(*pep.Config)
		contact  time.Time
		allow    bool
		outcome  auditv1.Outcome
		enforced bool
		tier     policy.Tier
		mode     policy.Mode
	}{
		{name: "allow", decider: peptest.Verdict(policy.Allow), allow: true, outcome: auditv1.Outcome_OUTCOME_ALLOW, enforced: true, tier: policy.ServiceAllow, mode: policy.Enforce},
		{name: "deny", decider: peptest.Verdict(policy.Deny), outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.DefaultDeny, mode: policy.Enforce},
		{name: "undefined", decider: peptest.Verdict(policy.Undefined), outcome: auditv1.Outcome_OUTCOME_UNDEFINED, enforced: true, tier: policy.DefaultDeny, mode: policy.Enforce},
		{name: "error", decider: peptest.Verdict(policy.Error), outcome: auditv1.Outcome_OUTCOME_ERROR, enforced: true, tier: policy.DefaultDeny, mode: policy.Enforce},
		{name: "no verdict", decider: peptest.Verdict(0), outcome: auditv1.Outcome_OUTCOME_ERROR, enforced: true, tier: policy.DefaultDeny, mode: policy.Enforce},
		{name: "verdict out of range", decider: peptest.Verdict(77), outcome: auditv1.Outcome_OUTCOME_ERROR, enforced: true, tier: policy.DefaultDeny, mode: policy.Enforce},
		{name: "no policy", outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.Enforcement, mode: policy.Enforce},
		{
			name: "service unknown to the catalogue", decider: peptest.Verdict(policy.Allow),
			snapshot: func(s *policy.Snapshot) { delete(s.Services, service) },
			outcome:  auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.Enforcement, mode: policy.Enforce,
		},
		{
			name: "service of somebody else", decider: peptest.Verdict(policy.Allow),
			snapshot: func(s *policy.Snapshot) {
				s.Services[service] = policy.Service{Name: service, SPIFFEIDs: []string{"spiffe://example.org/svc/other"}, Mode: policy.Observe, ObserveUntil: now.Add(time.Hour)}
			},
			outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.Enforcement, mode: policy.Enforce,
		},
		{
			name: "observed deny passes", decider: peptest.Verdict(policy.Deny), snapshot: observing(now.Add(time.Second)),
			allow: true, outcome: auditv1.Outcome_OUTCOME_DENY, tier: policy.DefaultDeny, mode: policy.Observe,
		},
		{
			name: "observing ends by itself", decider: peptest.Verdict(policy.Deny), snapshot: observing(now),
			outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.DefaultDeny, mode: policy.Enforce,
		},
		{
			name: "observed allow", decider: peptest.Verdict(policy.Allow), snapshot: observing(now.Add(time.Second)),
			allow: true, outcome: auditv1.Outcome_OUTCOME_ALLOW, enforced: true, tier: policy.ServiceAllow, mode: policy.Observe,
		},
		{
			name: "unknown obligation", decider: peptest.Decide(func(_ *policy.Input, out *policy.Decision) {
				out.Verdict, out.Obligations = policy.Allow, append(out.Obligations, policy.Obligation{Name: "redact"})
			}),
			outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.Enforcement, mode: policy.Enforce,
		},
		{
			name: "policy too old", decider: peptest.Verdict(policy.Allow), contact: now.Add(-2 * time.Minute),
			cfg:     func(c *pep.Config) { c.MaxPolicyAge, c.OnStale = time.Minute, pep.DenyStale },
			outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.Enforcement, mode: policy.Enforce,
		},
		{
			name: "policy confirmed in time", decider: peptest.Verdict(policy.Allow), contact: now.Add(-time.Minute),
			cfg:   func(c *pep.Config) { c.MaxPolicyAge, c.OnStale = time.Minute, pep.DenyStale },
			allow: true, outcome: auditv1.Outcome_OUTCOME_ALLOW, enforced: true, tier: policy.ServiceAllow, mode: policy.Enforce,
		},
		{
			name: "never confirmed", decider: peptest.Verdict(policy.Allow), snapshot: observing(now.Add(time.Hour)),
			cfg:     func(c *pep.Config) { c.MaxPolicyAge, c.OnStale = time.Minute, pep.DenyStale },
			outcome: auditv1.Outcome_OUTCOME_DENY, enforced: true, tier: policy.Enforcement, mode: policy.Enforce,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &peptest.Recorder{}
			e := newEnforcer(t, rec, func(c *pep.Config) {
				c.Now = func() time.Time { return now }
				if tc.cfg != nil {
					tc.cfg(c)
				}
			})
			if tc.decider != nil {
				s := peptest.Snapshot(1, service, ownID, tc.decider)
				if tc.snapshot != nil {
					tc.snapshot(s)
				}
				e.SetSnapshot(s)
			}
			if !tc.contact.IsZero() {
				e.Contacted(tc.contact)
			}
			res := e.Enforce(context.Background(), request())
			events := slices.DeleteFunc(rec.Events(), func(ev peptest.Event) bool { return ev.Kind == auditv1.Kind_KIND_ALARM })
			if len(events) != 1 {
				t.Fatalf("%d events, want 1", len(events))
			}
			ev := events[0]
			type seen struct {
				Allow, Enforced bool
				Outcome         auditv1.Outcome
				Tier            policy.Tier
				Mode            policy.Mode
				ID              string
				Service         string
			}
			want := seen{tc.allow, tc.enforced, tc.outcome, tc.tier, tc.mode, ev.DecisionID, service}
			got := seen{res.Allow, ev.Enforced, ev.Outcome, ev.Decision.Tier, ev.Mode, res.DecisionID, ev.Input.Destination.Service}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if res.Tier != tc.tier || res.Mode != tc.mode || res.Outcome != tc.outcome {
				t.Errorf("result %+v", res)
			}
		})
	}
}

func TestNoRecordNoYes(t *testing.T) {
	rec := &peptest.Recorder{}
	e := newEnforcer(t, rec, nil)
	e.SetSnapshot(peptest.Snapshot(1, service, ownID, peptest.Verdict(policy.Allow)))
	rec.Fill(true)
	res := e.Enforce(context.Background(), request())
	if res.Allow || res.Recorded || res.DecisionID != "" || res.Status != http.StatusServiceUnavailable {
		t.Errorf("result without a record: %+v", res)
	}
	rec.Fill(false)
	if res := e.Enforce(context.Background(), request()); !res.Allow {
		t.Errorf("result after the recorder came back: %+v", res)
	}
}

func TestStaleAlarmIsRaisedOnce(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	rec := &peptest.Recorder{}
	e := newEnforcer(t, rec, func(c *pep.Config) {
		c.MaxPolicyAge = time.Minute
		c.Now = func() time.Time { return now }
	})
	e.SetSnapshot(peptest.Snapshot(1, service, ownID, peptest.Verdict(policy.Allow)))
	alarms := func() (n int) {
		for _, ev := range rec.Events() {
			if ev.Kind == auditv1.Kind_KIND_ALARM {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		contact bool
		advance time.Duration
		alarms  int
	}{
		{alarms: 1}, {alarms: 1},
		{contact: true, alarms: 1},
		{advance: 2 * time.Minute, alarms: 2}, {alarms: 2},
	} {
		now = now.Add(step.advance)
		if step.contact {
			e.Contacted(now)
		}
		if res := e.Enforce(context.Background(), request()); !res.Allow {
			t.Fatalf("an alarm must not deny: %+v", res)
		}
		if got := alarms(); got != step.alarms {
			t.Fatalf("%d alarms, want %d", got, step.alarms)
		}
	}
}

func TestTimeNeverGoesBelowSignedTime(t *testing.T) {
	wall := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	e := newEnforcer(t, &peptest.Recorder{}, func(c *pep.Config) { c.Now = func() time.Time { return wall } })
	s := peptest.Snapshot(1, service, ownID, peptest.Verdict(policy.Allow))
	s.Activated = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	e.SetSnapshot(s)
	if got := e.Now(); !got.Equal(s.Activated) {
		t.Errorf("now %s, want %s", got, s.Activated)
	}
	e.SawSignedTime(wall)
	if got := e.Now(); !got.Equal(s.Activated) {
		t.Errorf("an older signed time moved now to %s", got)
	}
	in := request()
	e.Enforce(context.Background(), in)
	if !in.Time.Equal(s.Activated) {
		t.Errorf("decided at %s", in.Time)
	}
}

func TestRefuse(t *testing.T) {
	for _, tc := range []struct {
		layer string
		kind  auditv1.Kind
	}{
		{policy.LayerRequest, auditv1.Kind_KIND_DECISION},
		{policy.LayerConnection, auditv1.Kind_KIND_CONNECTION},
	} {
		rec := &peptest.Recorder{}
		e := newEnforcer(t, rec, nil)
		in := request()
		in.Layer = tc.layer
		res := e.Refuse(context.Background(), in, pep.Refusal{Status: 400, Reason: "why"})
		ev := rec.Events()[0]
		if res.Allow || res.Status != 400 || res.DecisionID != ev.DecisionID {
			t.Errorf("result %+v", res)
		}
		if ev.Kind != tc.kind || ev.Outcome != auditv1.Outcome_OUTCOME_REFUSED || ev.Reason != "why" || !ev.Enforced || ev.Decision != nil {
			t.Errorf("event %+v", ev)
		}
	}
}

func TestRecheck(t *testing.T) {
	rec := &peptest.Recorder{}
	e := newEnforcer(t, rec, nil)
	e.SetSnapshot(peptest.Snapshot(1, service, ownID, peptest.Verdict(policy.Allow)))
	changed := e.Changed()
	if res := e.Recheck(context.Background(), request()); !res.Allow || len(rec.Events()) != 0 {
		t.Errorf("still allowed: %+v, %d events", res, len(rec.Events()))
	}
	e.SetSnapshot(peptest.Snapshot(2, service, ownID, peptest.Verdict(policy.Deny)))
	select {
	case <-changed:
	default:
		t.Error("Changed was not closed")
	}
	if res := e.Recheck(context.Background(), request()); res.Allow || len(rec.Events()) != 1 {
		t.Errorf("denied now: %+v, %d events", res, len(rec.Events()))
	}
}

func TestTraceID(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for header, want := range map[string]string{
		"00-" + id + "-00f067aa0ba902b7-01": id,
		"00-" + id:                          "",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01": "",
		"": "",
	} {
		rec := &peptest.Recorder{}
		e := newEnforcer(t, rec, nil)
		in := request()
		in.Request.Headers = policy.MapValues{"traceparent": {header}}
		e.Enforce(context.Background(), in)
		if got := rec.Events()[0].TraceID; got != want {
			t.Errorf("%q: trace id %q, want %q", header, got, want)
		}
	}
}

func BenchmarkEnforce(b *testing.B) {
	e, err := pep.New(pep.Config{Service: service, ID: spiffeid.RequireFromString(ownID), Recorder: peptest.Discard{}})
	if err != nil {
		b.Fatal(err)
	}
	e.SetSnapshot(peptest.Snapshot(1, service, ownID, peptest.Verdict(policy.Allow)))
	in := request()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		in.Time = time.Time{}
		if !e.Enforce(ctx, in).Allow {
			b.Fatal("denied")
		}
	}
}

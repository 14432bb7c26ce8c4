package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity"
)

// FromAct is the event that an Act becomes.
func FromAct(act identity.Act, at time.Time) Event {
	ev := Event{
		Kind:    auditv1.Kind_KIND_ADMIN,
		Time:    at,
		Outcome: auditv1.Outcome_OUTCOME_SUCCESS,
		Reason:  act.Reason,
		Action: &auditv1.Action{
			Verb: act.Verb, Actor: act.Actor, Object: act.Object, ObjectId: act.ObjectID,
		},
	}
	switch act.Kind {
	case identity.ActCredential:
		ev.Kind = auditv1.Kind_KIND_CREDENTIAL
	case identity.ActPolicy:
		ev.Kind = auditv1.Kind_KIND_POLICY
	case identity.ActAlarm:
		ev.Kind = auditv1.Kind_KIND_ALARM
	}
	if act.Failed {
		ev.Outcome = auditv1.Outcome_OUTCOME_FAILURE
	}
	for _, d := range act.Details {
		ev.Action.Details = append(ev.Action.Details, &auditv1.Field{Name: d[0], Values: []string{d[1]}})
	}
	return ev
}

// Emitter records Acts with rec; the Act is as durable as rec makes it. now is
// the clock, time.Now where nil.
func Emitter(rec Recorder, now func() time.Time) identity.Emit {
	all := EmitterAll(rec, now)
	return func(ctx context.Context, act identity.Act) error { return all(ctx, []identity.Act{act}) }
}

// EmitterAll records many Acts with rec: together where rec is a BatchRecorder,
// otherwise one after another. now is the clock, time.Now where nil.
func EmitterAll(rec Recorder, now func() time.Time) identity.EmitAll {
	if now == nil {
		now = time.Now
	}
	batch, together := rec.(BatchRecorder)
	return func(ctx context.Context, acts []identity.Act) error {
		if len(acts) == 0 {
			return nil
		}
		first := func(err error) error {
			return fmt.Errorf("record %s %s: %w", acts[0].Object, acts[0].Verb, err)
		}
		if err := ctx.Err(); err != nil {
			return first(err)
		}
		at := now()
		events := make([]Event, len(acts))
		for i, act := range acts {
			events[i] = FromAct(act, at)
		}
		if together && len(events) > 1 {
			if err := batch.RecordAll(events); err != nil {
				return first(err)
			}
			return nil
		}
		for i := range events {
			if _, err := rec.Record(&events[i]); err != nil {
				return fmt.Errorf("record %s %s: %w", acts[i].Object, acts[i].Verb, err)
			}
		}
		return nil
	}
}

package audit

import (
	"strconv"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
)

// Program is what lifecycle events say of the program that records.
type Program struct {
	Name    string
	Version string
	// Actor is its SPIFFE ID.
	Actor string
}

// Started is the event that a program records first: that the record begins,
// and what is known of the clock it is kept by (NIST 800-53 AU-8).
func (p Program) Started(at time.Time) Event {
	ev := p.event("started", at)
	ev.Action.Details = append(ev.Action.Details, readClock().details()...)
	return ev
}

// Stopped is the event that a program records last.
func (p Program) Stopped(at time.Time) Event { return p.event("stopped", at) }

func (p Program) event(verb string, at time.Time) Event {
	return Event{
		Kind:    auditv1.Kind_KIND_LIFECYCLE,
		Time:    at,
		Outcome: auditv1.Outcome_OUTCOME_SUCCESS,
		Action: &auditv1.Action{
			Verb: verb, Actor: p.Actor, Object: "recorder", ObjectId: p.Name,
			Details: []*auditv1.Field{{Name: "version", Values: []string{p.Version}}},
		},
	}
}

// clock is what the kernel knows of its clock.
type clock struct {
	source string
	known  bool
	// synchronized by NTP, PTP or the like, as its daemon told the kernel.
	synchronized bool
	// offset last measured, and the bound of the error.
	offset, maxError time.Duration
}

func (c clock) details() []*auditv1.Field {
	field := func(name, value string) *auditv1.Field {
		return &auditv1.Field{Name: name, Values: []string{value}}
	}
	if !c.known {
		return []*auditv1.Field{field("clock", "unknown")}
	}
	return []*auditv1.Field{
		field("clock", c.source),
		field("clock_synchronized", strconv.FormatBool(c.synchronized)),
		field("clock_offset_ns", strconv.FormatInt(int64(c.offset), 10)),
		field("clock_max_error_ns", strconv.FormatInt(int64(c.maxError), 10)),
	}
}

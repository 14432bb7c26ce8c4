package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy/rules"
)

// retryAlarm is when an alarm that could not be put on record is tried again.
const retryAlarm = time.Minute

// denialsThatExpire are the YAML rules that go on denying after their expiry,
// the next first.
func denialsThatExpire(set *rules.Set) []rules.Expiry {
	return slices.DeleteFunc(set.Expiries(), func(e rules.Expiry) bool { return e.Action == "allow" })
}

// expired are those of a list in that order whose time has come.
func expired(list []rules.Expiry, now time.Time) []rules.Expiry {
	n := 0
	for n < len(list) && !list[n].At.After(now) {
		n++
	}
	return list[:n]
}

// expiredAnew are those of next that have expired and that what is in force does
// not have: those were told of when they expired.
func (s *Server) expiredAnew(next *active, now time.Time) []rules.Expiry {
	a, _ := s.current()
	return slices.DeleteFunc(slices.Clone(expired(next.expiries, now)), func(e rules.Expiry) bool {
		return a != nil && slices.ContainsFunc(a.expiries, func(o rules.Expiry) bool {
			return o.Service == e.Service && o.Rule.ID == e.Rule.ID && o.At.Equal(e.At)
		})
	})
}

func expiryAlarm(actor string, e rules.Expiry) identity.Act {
	return identity.Act{
		Kind: identity.ActAlarm, Verb: "expired", Actor: actor, Object: "policy rule", ObjectID: e.Rule.ID,
		Reason: fmt.Sprintf("%s:%d goes on denying since it expired at %s: renew it or remove it", e.Rule.File, e.Rule.Line, e.At.Format(time.RFC3339)),
		Details: [][2]string{
			{"service", e.Service}, {"action", e.Action}, {"expires", e.At.Format(time.RFC3339)}, {"owner", e.Owner}, {"ticket", e.Ticket},
		},
	}
}

// watchExpiries raises an alarm for each rule that expires while it is in force.
// What expired before New is on record, or in StandingAlarms at least.
func (s *Server) watchExpiries() {
	told := s.cfg.Clock()
	var last *active
	for first := true; ; first = false {
		a, changed := s.current()
		if a != last && !first && a != nil {
			// What the one before could not tell of, this one has to.
			if _, all := s.tellExpired(last, &told); all {
				told = a.info.Activated
			}
		}
		last = a
		wait, _ := s.tellExpired(a, &told)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-s.done:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// tellExpired raises the alarms of what has expired since told, and returns how
// long to wait for the next, and whether all there are went on record.
func (s *Server) tellExpired(a *active, told *time.Time) (wait time.Duration, all bool) {
	const forever = 24 * time.Hour // The clock may be set.
	if a == nil {
		return forever, true
	}
	now := s.cfg.Clock()
	for _, e := range a.expiries {
		if !e.At.After(*told) {
			continue
		}
		if wait := e.At.Sub(now); wait > 0 {
			*told = now
			return min(wait, forever), true
		}
		if err := s.cfg.Emit(context.Background(), expiryAlarm(itself, e)); err != nil {
			s.cfg.Log.Error("alarm cannot be put on record", "rule", e.Rule.ID, "error", err)
			return retryAlarm, false
		}
	}
	*told = now
	return forever, true
}

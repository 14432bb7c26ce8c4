package issuer

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var offset time.Duration
		s := newSteady(func() time.Time { return time.Now().Add(offset) })
		start := time.Now()
		for _, step := range []struct {
			passes, sets  time.Duration
			behind, noted time.Duration
		}{
			{passes: time.Minute},
			{passes: time.Minute, sets: 2 * time.Hour, behind: 2 * time.Hour, noted: 2 * time.Hour},
			{passes: time.Hour, behind: 2 * time.Hour},
			{passes: time.Minute, sets: time.Hour, behind: 3 * time.Hour, noted: time.Hour},
			{sets: -3 * time.Hour, noted: -3 * time.Hour},
			{passes: time.Minute, sets: -2 * time.Hour, noted: -2 * time.Hour},
			// Right again: what was due in between is late by as much, not early.
			{passes: time.Minute, sets: 2 * time.Hour, behind: 2 * time.Hour, noted: 2 * time.Hour},
			{passes: time.Minute, sets: time.Second, behind: 2 * time.Hour}, // NTP
		} {
			time.Sleep(step.passes)
			offset += step.sets
			now, set := s.now()
			if want := time.Now().Add(offset - step.behind); now.Sub(want).Abs() > 2*time.Second || set.Round(time.Minute) != step.noted {
				t.Errorf("after %v: %v ahead of time and set by %v, want %v and %v", time.Since(start), time.Until(now), set, offset-step.behind, step.noted)
			}
		}
	})
}

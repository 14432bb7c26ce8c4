package issuer

import "time"

// steady is a clock that does not jump ahead. What cannot be undone goes by it:
// where the wall clock is set ahead, nothing is deleted before its time has
// passed. If it was right to set it so, deletions are late by as much, until the
// next start.
type steady struct {
	clock func() time.Time
	// wall and passed are the wall clock's time, and the process's own, at the last
	// look.
	wall, passed time.Time
	behind       time.Duration // the wall clock
}

func newSteady(clock func() time.Time) *steady {
	// Without its reading of the other clock, which Sub would go by.
	return &steady{clock: clock, wall: clock().Round(0), passed: time.Now()}
}

// slewed is how far the wall clock may stray between two looks without having
// been set.
const slewed = 10 * time.Second

// now is the time, and by how much the wall clock has been set ahead since the
// last look; less than zero for back.
func (s *steady) now() (now time.Time, set time.Duration) {
	wall, passed := s.clock().Round(0), time.Now()
	if set = wall.Sub(s.wall) - passed.Sub(s.passed); set.Abs() < slewed {
		set = 0
	}
	s.wall, s.passed = wall, passed
	s.behind = max(0, s.behind+set)
	return wall.Add(-s.behind), set
}

package agent

import (
	"errors"
	"fmt"
	"time"
)

// Health says what keeps the agent from serving, nil if nothing does: there are no
// entries yet, its own SVID has expired, or every SVID of workloads has. changed is
// closed when it may be otherwise, and until is when it will be by itself, zero for
// never.
func (a *Agent) Health() (changed <-chan struct{}, until time.Time, problem error) {
	now := time.Now()
	// The channel comes first: what changes while the rest is looked at counts.
	changed, expired := a.cache.allExpired(now)
	own := a.self.svid.Load()
	switch {
	case !a.isReady():
		// Of an agent that is not ready nothing has been served.
		return a.ready, time.Time{}, errors.New("entries are not known yet")
	case a.self.expired(now):
		return changed, time.Time{}, fmt.Errorf("the agent's own SVID expired at %s and was not renewed: the log says why", own.Certificates[0].NotAfter.Format(time.RFC3339))
	case !expired.IsZero():
		problem = fmt.Errorf("workloads get nothing: all SVIDs have expired, the last at %s: the log says why they were not renewed", expired.Format(time.RFC3339))
	}
	return changed, own.Certificates[0].NotAfter, problem
}

// allExpired returns when the last SVID expired, zero if one is valid or there was
// none, and what closes at the next change.
func (c *cache) allExpired(now time.Time) (changed <-chan struct{}, last time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.every() {
		if r.notAfter.After(last) {
			last = r.notAfter
		}
	}
	if now.Before(last) {
		last = time.Time{}
	}
	return c.changed, last
}

// tell wakes everybody for a change that is not of an entry.
func (c *cache) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake()
}

// Package limit bounds how often something is done for each of many callers.
package limit

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// ExceededError: too much was asked for. The turn of what was refused would have come
// after After.
type ExceededError struct{ After time.Duration }

func (e *ExceededError) Error() string {
	return fmt.Sprintf("rate limit exceeded: come again in %s", e.After.Round(time.Millisecond))
}

const (
	// maxKeys bounds how many keys are remembered; those beyond share one limit.
	maxKeys = 10_000
	// maxDelay is how long a turn may be waited for.
	maxDelay = 5 * time.Second
)

// Limits is a token bucket for each key. It is safe for concurrent use.
type Limits[K comparable] struct {
	limit rate.Limit
	burst int

	mu       sync.Mutex
	byKey    map[K]*rate.Limiter
	overflow *rate.Limiter
}

// New makes Limits of a rate and a burst, which is at least 1, for each key.
func New[K comparable](perSecond float64, burst int) *Limits[K] {
	l := &Limits[K]{limit: rate.Limit(perSecond), burst: max(1, burst), byKey: map[K]*rate.Limiter{}}
	l.overflow = rate.NewLimiter(l.limit, l.burst)
	return l
}

// Allow says whether one more may be done for key now.
func (l *Limits[K]) Allow(key K) bool {
	now := time.Now()
	return l.of(key, now).AllowN(now, 1)
}

// Wait returns when n may be done for key. More than the burst take their turns
// one burst after the other. The error is an *ExceededError where a turn is
// more than five seconds away, or that of ctx.
func (l *Limits[K]) Wait(ctx context.Context, key K, n int) error {
	for n > 0 {
		turn := min(n, l.burst)
		if err := l.wait(ctx, key, turn); err != nil {
			return err
		}
		n -= turn
	}
	return nil
}

func (l *Limits[K]) wait(ctx context.Context, key K, n int) error {
	now := time.Now()
	reservation := l.of(key, now).ReserveN(now, n)
	delay := reservation.DelayFrom(now)
	if !reservation.OK() || delay > maxDelay {
		reservation.CancelAt(now)
		return &ExceededError{After: delay}
	}
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		reservation.Cancel()
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (l *Limits[K]) of(key K, now time.Time) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.byKey[key]; ok {
		return known
	}
	if len(l.byKey) >= maxKeys {
		for k, idle := range l.byKey {
			if idle.TokensAt(now) >= float64(l.burst) {
				delete(l.byKey, k) // the same as one never seen
			}
		}
	}
	if len(l.byKey) >= maxKeys {
		return l.overflow
	}
	fresh := rate.NewLimiter(l.limit, l.burst)
	l.byKey[key] = fresh
	return fresh
}

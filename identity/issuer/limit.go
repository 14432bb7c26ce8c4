package issuer

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxLimited bounds how many addresses are remembered; those beyond share
	// one limit.
	maxLimited = 10_000
	// maxDelay is how long an attempt may be made to wait.
	maxDelay = 5 * time.Second
)

// limiter bounds attestation attempts per client address.
type limiter struct {
	limit rate.Limit
	burst int

	mu       sync.Mutex
	byAddr   map[netip.Prefix]*rate.Limiter
	overflow *rate.Limiter
}

func newLimiter(perSecond float64, burst int) *limiter {
	l := &limiter{limit: rate.Limit(perSecond), burst: burst, byAddr: map[netip.Prefix]*rate.Limiter{}}
	l.overflow = rate.NewLimiter(l.limit, burst)
	return l
}

// wait returns when an attempt from addr may go on, or ResourceExhausted if
// that would take too long.
func (l *limiter) wait(ctx context.Context, addr netip.Addr) error {
	now := time.Now()
	reservation := l.of(addr, now).ReserveN(now, 1)
	delay := reservation.DelayFrom(now)
	if !reservation.OK() || delay > maxDelay {
		reservation.CancelAt(now)
		return status.Error(codes.ResourceExhausted, "too many attestation attempts from this address, try again later")
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		reservation.Cancel()
		return status.FromContextError(ctx.Err()).Err()
	case <-timer.C:
		return nil
	}
}

func (l *limiter) of(addr netip.Addr, now time.Time) *rate.Limiter {
	bits := 32
	if addr.Is6() {
		bits = 64 // whoever has one address there has the whole /64
	}
	prefix, _ := addr.WithZone("").Prefix(bits) // the zero prefix for no address
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.byAddr[prefix]; ok {
		return known
	}
	if len(l.byAddr) >= maxLimited {
		for p, idle := range l.byAddr {
			if idle.TokensAt(now) >= float64(l.burst) {
				delete(l.byAddr, p) // the same as one never seen
			}
		}
	}
	if len(l.byAddr) >= maxLimited {
		return l.overflow
	}
	fresh := rate.NewLimiter(l.limit, l.burst)
	l.byAddr[prefix] = fresh
	return fresh
}

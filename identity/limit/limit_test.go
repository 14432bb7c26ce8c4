package limit

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Each key has its own bucket; more than the burst take their turns.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New[string](500, 500)
		start := time.Now()
		for _, step := range []struct {
			key  string
			n    int
			want time.Duration // since the start
		}{
			{"a", 500, 0},
			{"b", 500, 0},
			{"a", 50, 100 * time.Millisecond},
			{"a", 1200, 2500 * time.Millisecond},
			{"a", 0, 2500 * time.Millisecond},
			{"b", 500, 2500 * time.Millisecond},
		} {
			if err := l.Wait(t.Context(), step.key, step.n); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start).Round(time.Millisecond); got != step.want {
				t.Errorf("%d for %s after %v, want %v", step.n, step.key, got, step.want)
			}
		}
	})
}

func TestWaitRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New[string](1, 5)
		start := time.Now()
		if err := l.Wait(t.Context(), "a", 5); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := l.Wait(ctx, "a", 5); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the context", err)
		}
		// What was not waited for was given back.
		for i, want := range []bool{true, true, false} {
			if got := l.Allow("a"); got != want {
				t.Errorf("attempt %d: %v, want two seconds' worth", i+1, got)
			}
		}
		done := make(chan error)
		go func() { done <- l.Wait(t.Context(), "a", 5) }()
		synctest.Wait()
		var exceeded *ExceededError
		if err := l.Wait(t.Context(), "a", 1); !errors.As(err, &exceeded) || exceeded.After != 6*time.Second {
			t.Errorf("six seconds ahead: %v, want an ExceededError that says so", err)
		}
		if err := <-done; err != nil || time.Since(start) != 7*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// Keys without end take no memory without end, and no new key means a new limit.
func TestManyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New[int](1, 1)
		for k := range maxKeys {
			if !l.Allow(k) {
				t.Fatal("refused the first of a key")
			}
		}
		if !l.Allow(maxKeys) || l.Allow(maxKeys+1) {
			t.Error("keys beyond the end do not share one limit")
		}
		<-time.After(2 * time.Second)
		l.Allow(maxKeys + 2)
		if len(l.byKey) != 1 {
			t.Errorf("%d keys, want the idle ones forgotten", len(l.byKey))
		}
	})
}

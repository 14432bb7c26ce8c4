package proxy

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestConnAge(t *testing.T) {
	for _, tc := range []struct {
		name string
		use  func(t *testing.T, a *connAge)
		// from and to bound the age at which the connection is closed.
		from, to time.Duration
	}{
		{"idle", func(*testing.T, *connAge) {}, 54*time.Minute + idleGrace, 66*time.Minute + idleGrace},
		{"open at the limit", func(t *testing.T, a *connAge) {
			if a.enter() {
				t.Error("a young connection ends")
			}
			time.Sleep(2 * time.Hour)
			if !a.enter() {
				t.Error("an old connection goes on")
			}
			a.leave()
			time.Sleep(time.Hour)
			a.leave()
		}, 3*time.Hour + idleGrace, 3*time.Hour + idleGrace},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a connAge
				closed, began := make(chan struct{}), time.Now()
				defer a.start(time.Hour, func() { close(closed) })()
				tc.use(t, &a)
				<-closed
				if age := time.Since(began); age < tc.from || age > tc.to {
					t.Errorf("closed at the age of %s", age)
				}
			})
		})
	}
}

package agent

import (
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity/workload"
)

// A user who invents audiences is limited; what is kept, and other users, are not.
func TestJWTSVIDLimit(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		g, _ := b.lookup("unix:uid:1")
		fetch := func(uid uint32, audience string) error {
			_, err := b.agent.JWTSVID(t.Context(), uid, g.Identities[0], []string{audience})
			return err
		}
		// A crowd that wants the same costs one.
		var crowd sync.WaitGroup
		for range 2 * newBurst {
			crowd.Go(func() {
				if err := fetch(1, "same"); err != nil {
					t.Error(err)
				}
			})
		}
		crowd.Wait()
		for n := range newBurst - 1 {
			if err := fetch(1, strconv.Itoa(n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := fetch(1, "one more"); !errors.Is(err, workload.ErrTooMany) {
			t.Errorf("got %v, want ErrTooMany", err)
		}
		if err := errors.Join(fetch(1, "same"), fetch(2, "one more"), fetch(1, "one more")); err != nil {
			t.Error(err)
		}
		<-time.After(time.Second / newPerSecond)
		if err := fetch(1, "later"); err != nil {
			t.Error(err)
		}
		if got := b.f.count("NewJWTSVID"); got != newBurst+2 {
			t.Errorf("the issuer was asked %d times, want %d", got, newBurst+2)
		}
	})
}

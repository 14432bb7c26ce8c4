package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/admit"
)

// What is signed is asked for in the order in which it expires, with what is left of
// it, and apart from what there was nothing of.
func TestRenewsInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.life = 3 * time.Hour
		b.mustRun() // e1, /svc/web
		b.f.with(func() {
			b.f.life = time.Hour
			b.f.entries = append(b.f.entries, entryOf("e2", "/svc/a", "unix:uid:1"))
		})
		<-time.After(time.Second)
		b.f.with(func() {
			b.f.life = 2 * time.Hour
			b.f.entries = append(b.f.entries, entryOf("e0", "/svc/b", "unix:uid:1"))
		})
		<-time.After(time.Second)
		want := []batch{{class: admit.First, entries: []string{"e1"}}, {class: admit.First, entries: []string{"e2"}}, {class: admit.First, entries: []string{"e0"}}}
		if diff := cmp.Diff(want, b.f.asks(), cmp.AllowUnexported(batch{})); diff != "" {
			t.Fatal(diff)
		}

		// The issuer is away when all of them are to be renewed; meanwhile there is a
		// new entry.
		b.f.stop()
		<-time.After(50 * time.Minute)
		// e2 has ten minutes left, and e0 and e1 are not due.
		b.f.with(func() { b.f.entries = append(b.f.entries, entryOf("a-new", "/svc/c", "unix:uid:1")) })
		b.f.start()
		<-time.After(30 * time.Second)
		got := b.f.asks()[len(want):]
		if len(got) != 2 || got[0].class != admit.Renewal || got[1].class != admit.First ||
			!slices.Equal(got[0].entries, []string{"e2"}) || !slices.Equal(got[1].entries, []string{"a-new"}) {
			t.Fatalf("asked for %+v", got)
		}
		if left := got[0].life; left < 9*time.Minute || left > 10*time.Minute+2*time.Second {
			t.Errorf("says that %v are left", left)
		}
	})
}

// asks are the requests for SVIDs so far.
func (f *fake) asks() []batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.batches)
}

// The agent's own renewal is as urgent as what its workloads have, which waits for it.
func TestRenewsItselfInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.own, b.f.life = 2*time.Hour, 20*time.Minute
		b.mustRun()
		<-time.After(70 * time.Minute)
		b.f.mu.Lock()
		defer b.f.mu.Unlock()
		if len(b.f.renewals) != 1 || b.f.renewals[0] < 8*time.Minute || b.f.renewals[0] > 20*time.Minute {
			t.Errorf("it said that %v were left, want what the SVID of its workload has", b.f.renewals)
		}
	})
}

func TestDueOrder(t *testing.T) {
	now := time.Now()
	c := newCache()
	for id, until := range map[string]time.Duration{"b": time.Minute, "a": time.Hour, "d": -time.Minute, "z-new": 0, "c": 2 * time.Minute, "a-new": 0, "revoked": time.Hour} {
		r := &record{entry: entry{id: id, served: true}}
		if until != 0 {
			r.notAfter = now.Add(until)
		}
		r.revoked = id == "revoked"
		c.records[id] = r
	}
	var got []string
	for _, s := range c.dueBy(now) {
		got = append(got, s.id)
		if s.until.IsZero() != (s.id == "a-new" || s.id == "z-new") {
			t.Errorf("%s until %v", s.id, s.until)
		}
	}
	if diff := cmp.Diff([]string{"d", "revoked", "b", "c", "a", "a-new", "z-new"}, got); diff != "" {
		t.Error(diff)
	}
}

// An issuer that is overloaded says when to come again. The agent does not come
// before, nor exactly then, and keeps its connection.
func TestComesAgainWhenTold(t *testing.T) {
	for _, method := range []string{"BatchNewX509SVID", "GetBundle", "RenewAgent"} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.mustRun()
				<-time.After(time.Second) // it watches
				watches, before := b.f.count("Watch"), b.f.count(method)
				told := admit.Status(&admit.RefusedError{After: 20 * time.Second})
				b.f.with(func() {
					b.f.fail[method] = told
					b.f.entries = append(b.f.entries, entryOf("e2", "/svc/a", "unix:uid:1"))
				})
				if method == "RenewAgent" {
					<-time.After(36 * time.Minute) // its SVID lives for an hour
					before = b.f.count(method)
				}
				<-time.After(5 * time.Minute)
				if n := b.f.count(method) - before; n < 8 || n > 16 {
					t.Errorf("%d calls in five minutes, want one in 20 to 30 seconds", n)
				}
				if n := b.f.count("Watch"); n != watches {
					t.Errorf("%d connections more", n-watches)
				}
				b.f.with(func() { b.f.fail[method] = nil })
				<-time.After(time.Minute)
				if s := b.agent.Status(); s.SVIDs != 2 || method == "RenewAgent" && s.Renewals != 1 {
					t.Errorf("after it: %+v", s)
				}
			})
		})
	}
}

// The issuer is not asked for new JWT-SVIDs before when it said to come again, nor to
// sync because of that. What is renewed is served from before meanwhile, and is asked
// for apart from what is new.
func TestJWTComesAgainWhenTold(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		g, _ := b.lookup("unix:uid:1")
		fetch := func(audience string) (string, error) {
			return b.agent.JWTSVID(t.Context(), 1, g.Identities[0], []string{audience})
		}
		kept, err := fetch("kept") // for five minutes
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(3 * time.Minute)
		syncs := b.agent.Status().Syncs
		b.f.refuse("NewJWTSVID", admit.Refuse("too many", 20*time.Second))
		for range 10 {
			if _, err := fetch("new"); err == nil {
				t.Fatal("there is one")
			}
			if got, err := fetch("kept"); err != nil || got != kept {
				t.Fatalf("not the one of before: %v", err)
			}
		}
		if n := b.f.count("NewJWTSVID"); n != 3 {
			t.Errorf("%d calls, want one that succeeded and one each for what is new and what is renewed", n)
		}
		b.f.refuse("NewJWTSVID", nil)
		<-time.After(19 * time.Second)
		if _, err := fetch("new"); err == nil {
			t.Error("asked before the time")
		}
		<-time.After(11 * time.Second) // half as long again at most
		if _, err := fetch("new"); err != nil {
			t.Error(err)
		}
		if got, err := fetch("kept"); err != nil || got == kept {
			t.Errorf("not renewed: %v", err)
		}
		if n := b.agent.Status().Syncs - syncs; n > 1 { // the one that was due
			t.Errorf("%d syncs", n)
		}
	})
}

// refuse fails a method, without telling those who watch.
func (f *fake) refuse(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[method] = err
}

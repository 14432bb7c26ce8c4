package attest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/attest/cgroup"
	"github.com/writ-dev/writ/internal/peercred"
)

// method is what a test makes of one.
type method struct {
	name   string
	attest func(context.Context) ([]string, error)
}

func (m method) Type() string    { return m.name }
func (m method) Kinds() []string { return []string{m.name + ":a", m.name + ":b"} }
func (m method) Attest(ctx context.Context, _ int) ([]string, error) {
	return m.attest(ctx)
}

type kernel struct{ err error }

func (k kernel) Attest(context.Context, peercred.Peer, func(string) bool) ([]string, error) {
	return []string{"unix:uid:1"}, k.err
}

func TestMethodsAddWhatTheyProve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // Methods fail at once.
		var failed []string
		note := func(m string) {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, m)
		}
		fails := func(context.Context) ([]string, error) { return []string{"x:a:unproven"}, errors.New("no engine") }
		hangs := func(ctx context.Context) ([]string, error) { <-ctx.Done(); return []string{"x:a:late"}, ctx.Err() }
		none := func(context.Context) ([]string, error) { return nil, cgroup.ErrNone }
		never := func(context.Context) ([]string, error) { t.Error("asked for nothing"); return nil, nil }
		w := Workloads{Kernel: kernel{}, Log: slog.New(slog.DiscardHandler), Failed: note, Methods: []Workload{
			method{"good", func(context.Context) ([]string, error) { return []string{"good:a:1", "good:b:2"}, nil }},
			method{"bad", fails}, method{"hangs", hangs}, method{"none", none}, method{"unasked", never},
		}}
		begin := time.Now()
		got, err := w.Attest(t.Context(), peercred.Peer{}, func(kind string) bool { return slices.Contains([]string{"good:b", "bad:a", "hangs:a", "none:a"}, kind) })
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"unix:uid:1", "good:a:1", "good:b:2"}, got); diff != "" {
			t.Errorf("selectors (-want +got):\n%s", diff)
		}
		if took := time.Since(begin); took != Timeout {
			t.Errorf("it took %v, the limit of a method is %v", took, Timeout)
		}
		slices.Sort(failed)
		if diff := cmp.Diff([]string{"bad", "hangs"}, failed); diff != "" {
			t.Errorf("failed: %s", diff)
		}
	})
}

// A process that is not the caller any more gets nothing, whatever a method says
// of its number.
func TestKernelHasTheLastWord(t *testing.T) {
	w := Workloads{Kernel: kernel{peercred.ErrGone}, Log: slog.New(slog.DiscardHandler), Methods: []Workload{
		method{"good", func(context.Context) ([]string, error) { return []string{"good:a:1"}, nil }},
	}}
	got, err := w.Attest(t.Context(), peercred.Peer{}, func(string) bool { return true })
	if got != nil || !errors.Is(err, peercred.ErrGone) {
		t.Errorf("got %v, %v", got, err)
	}
}

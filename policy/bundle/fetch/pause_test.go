package fetch

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
)

// TestPause: a server cannot make a poller ask without a pause, and what it
// refuses, which is put on record, costs an interval.
func TestPause(t *testing.T) {
	p := &Poller{cfg: PollConfig{MinInterval: time.Minute, MaxInterval: time.Minute, LongPoll: 10 * time.Minute}}
	for name, tt := range map[string]struct {
		longPoll, changed bool
		took, want        time.Duration
	}{
		"polled":                {false, true, 0, time.Minute},
		"held":                  {true, false, 5 * time.Minute, 0},
		"held to the change":    {true, true, 5 * time.Minute, 0},
		"new at once":           {true, true, 0, time.Second},
		"at once, nothing new":  {true, false, 0, time.Minute},
		"soon, and nothing new": {true, false, time.Minute, time.Minute},
	} {
		p.longPoll = tt.longPoll
		if got := p.pause(tt.changed, tt.took); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	refuse := refusing(t)
	if changed, err := refuse.take(t.Context(), []byte("x"), ""); changed || err != nil {
		t.Errorf("what was refused is new: %v, %v", changed, err)
	}
}

func refusing(t *testing.T) *Poller {
	t.Helper()
	p, err := NewPoller(PollConfig{
		URL: "https://example.org/x", MinInterval: time.Second, MaxInterval: time.Second, Log: slog.New(slog.DiscardHandler),
		Take: func(context.Context, []byte) error { return policy.Refused{{Message: "no"}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

package agent_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
)

// journal is a log that a test reads.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

// lines returns the lines with a text in them.
func (j *journal) lines(text string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.buf.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

func (j *journal) tail() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	text := j.buf.String()
	return text[max(0, len(text)-4000):]
}

// clocks is an agent and its issuer, the clocks of which a test sets apart.
type clocks struct {
	t      *testing.T
	issuer *agenttest.Issuer
	cfg    agent.Config
	token  string
	log    *journal

	agent *agent.Agent
	stop  func() error
	done  chan error
}

// inClocks runs test in a bubble.
func inClocks(t *testing.T, test func(t *testing.T, c *clocks)) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, time.Hour)
		r.Create("/svc/web", "/node/n1", "uid:1")
		c := &clocks{t: t, issuer: r, cfg: config(t, r), token: r.Token("/node/n1"), log: &journal{}}
		test(t, c)
		must(t, c.stop())
	})
}

func (c *clocks) start() {
	c.t.Helper()
	var err error
	c.agent, err = agent.New(c.cfg, agent.Options{
		Token: func() (string, error) { return c.token, nil }, Log: slog.New(slog.NewTextHandler(c.log, nil)), Dial: c.issuer.Dial,
	})
	must(c.t, err)
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	c.done = done
	go func() { done <- c.agent.Run(ctx) }()
	c.stop = func() error {
		cancel()
		return <-done
	}
}

// ready waits until the agent is, or fails.
func (c *clocks) ready() {
	c.t.Helper()
	select {
	case <-c.agent.Ready():
	case err := <-c.done:
		c.done <- nil
		c.t.Fatalf("the agent ended: %v; its log ends with\n%s", err, c.log.tail())
	}
}

// svid is what uid 1 has, nil without a valid one.
func (c *clocks) svid() *x509.Certificate {
	c.t.Helper()
	g, _, err := c.agent.Lookup(context.Background(), []string{"unix:uid:1"})
	must(c.t, err)
	if len(g.Identities) != 1 || g.Identities[0].Chain == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(g.Identities[0].Chain)
	must(c.t, err)
	return cert
}

// logged fails the test if the log has no line with all of these.
func (c *clocks) logged(texts ...string) {
	c.t.Helper()
	for _, line := range c.log.lines(texts[0]) {
		missing := false
		for _, text := range texts {
			missing = missing || !strings.Contains(line, text)
		}
		if !missing {
			return
		}
	}
	c.t.Errorf("the log has no line with %q; it ends with:\n%s", texts, c.log.tail())
}

// The issuer's clock is set two hours wrong while everything runs, for longer than
// half of an SVID's life, and then right again. The agent goes on with what it has,
// says what is wrong and by how much, asks seldom, and recovers by itself.
func TestIssuersClockSetWrong(t *testing.T) {
	for _, off := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			inClocks(t, func(t *testing.T, c *clocks) {
				c.start()
				c.ready()
				time.Sleep(10 * time.Minute)
				before := c.svid()
				c.issuer.SetClock(off)
				time.Sleep(40 * time.Minute)
				if got := c.svid(); got == nil || got.SerialNumber.Cmp(before.SerialNumber) != 0 {
					t.Error("the SVID that is good by this clock is not served any more")
				}
				what := []string{"takes the agent's SVID for expired", "the issuer's clock says 2000-01-01T02:"}
				if off < 0 {
					what = []string{"are apart", "2h0m0s behind this machine's"}
				}
				c.logged(what...)
				c.logged("this machine's clock", "check both")
				// Half an hour of a clock that is wrong: not a signature a second.
				if s := c.agent.Status(); s.SignErrors > 90 || s.SyncErrors > 90 {
					t.Errorf("asked too often: %+v", s)
				}
				c.issuer.SetClock(0)
				time.Sleep(time.Minute)
				if got := c.svid(); got == nil || got.SerialNumber.Cmp(before.SerialNumber) == 0 {
					t.Error("no new SVID a minute after the clocks agree")
				}
				if len(c.log.lines("must be attested again")) > 0 {
					t.Error("the agent wanted a proof for what was a matter of clocks")
				}
				// And it stays well.
				time.Sleep(3 * time.Hour)
				if got := c.svid(); got == nil || c.agent.Status().IssuerAhead.Abs() > time.Second {
					t.Errorf("three hours later: %v, %+v", got, c.agent.Status())
				}
			})
		})
	}
}

// The clocks are apart for so long that everything expires: nothing is lost that
// the next hour does not bring back, and no token is asked for.
func TestClocksApartForLong(t *testing.T) {
	inClocks(t, func(t *testing.T, c *clocks) {
		c.start()
		c.ready()
		c.issuer.SetClock(-2 * time.Hour)
		time.Sleep(90 * time.Minute)
		if got := c.svid(); got != nil {
			t.Errorf("served after its end: %v", got.NotAfter)
		}
		c.logged("check both")
	})
}

// An agent that is started while the clocks are apart waits, with a message, and
// its token is as good afterwards; likewise one that has been an agent before.
func TestStartWithClocksApart(t *testing.T) {
	for _, off := range []time.Duration{2 * time.Hour, -2 * time.Hour, 20 * time.Minute, -30 * time.Minute} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			inClocks(t, func(t *testing.T, c *clocks) {
				time.Sleep(3 * time.Hour) // so that there is a bundle from before in any case
				c.token = c.issuer.Token("/node/n1")
				c.issuer.SetClock(off)
				c.start()
				time.Sleep(2 * time.Minute)
				if off.Abs() > time.Hour {
					select {
					case <-c.agent.Ready():
						t.Error("ready with an issuer that cannot prove itself")
					default:
					}
				}
				if off.Abs() != 30*time.Minute {
					c.logged("this machine's clock says")
				}
				c.issuer.SetClock(0)
				c.ready()
				if c.svid() == nil {
					t.Errorf("no SVID when the clocks agree: %s", c.log.tail())
				}

				// Started again.
				must(t, c.stop())
				c.issuer.SetClock(off)
				c.token = ""
				c.start()
				time.Sleep(2 * time.Minute)
				c.issuer.SetClock(0)
				c.ready()
			})
		})
	}
}

// A token that is not valid by this clock is not given out, and says why.
func TestJWTOfClockApart(t *testing.T) {
	inClocks(t, func(t *testing.T, c *clocks) {
		c.start()
		c.ready()
		time.Sleep(2 * time.Hour)
		g, _, err := c.agent.Lookup(context.Background(), []string{"unix:uid:1"})
		must(t, err)
		id := g.Identities[0]
		if _, err := c.agent.JWTSVID(t.Context(), 1, id, []string{"first"}); err != nil {
			t.Fatal(err)
		}
		for off, least := range map[time.Duration]string{20 * time.Minute: "20m0s or more", -20 * time.Minute: "15m0s or more"} {
			c.issuer.SetClock(off)
			if _, err := c.agent.JWTSVID(t.Context(), 1, id, []string{"other"}); err == nil || !strings.Contains(err.Error(), least) {
				t.Errorf("off by %v: %v", off, err)
			}
			// What there is, is good.
			if _, err := c.agent.JWTSVID(t.Context(), 1, id, []string{"first"}); err != nil {
				t.Errorf("off by %v: %v", off, err)
			}
		}
		// Less than a minute is granted, as those who validate do.
		c.issuer.SetClock(50 * time.Second)
		if _, err := c.agent.JWTSVID(t.Context(), 1, id, []string{"third"}); err != nil {
			t.Error(err)
		}
	})
}

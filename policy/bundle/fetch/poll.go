package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/writ-dev/writ/policy"
)

// longPollType is the content type with which a bundle server says that it
// holds a request until there is something new.
const longPollType = "application/vnd.openpolicyagent.bundles"

// minRetry is the first wait after a failure.
const minRetry = time.Second

// PollConfig is what a Poller needs.
type PollConfig struct {
	// URL of an OPA bundle.
	URL  string
	HTTP HTTP
	// Take gets each new bundle. A policy.Refused is final for those bytes; any
	// other error is tried again.
	Take func(ctx context.Context, data []byte) error
	// MinInterval and MaxInterval bound the time between two requests, which is
	// chosen at random. MaxInterval is also the longest wait after failures.
	MinInterval, MaxInterval time.Duration
	// LongPoll is for how long the server is asked to hold a request, whole
	// seconds; 0 is not at all. A server that cannot is polled.
	LongPoll time.Duration
	Log      *slog.Logger
	// Clock is time.Now when nil.
	Clock func() time.Time
}

// PollStatus says how a Poller is doing.
type PollStatus struct {
	// URL without its query.
	URL string
	// Contact is when the server last answered, zero for never.
	Contact time.Time
	// Failing is why the last request failed, Refused why the last bundle was
	// not taken; both are empty when all is well.
	Failing, Refused string
}

// Poller follows one bundle by OPA's bundle protocol: it asks with the ETag of
// what it has, holds requests open where the server can, and keeps what it has
// when anything is wrong.
type Poller struct {
	cfg    PollConfig
	client *http.Client
	// Used by Run's goroutine only.
	etag     string
	seen     [32]byte // SHA-256 of the last bundle that was taken or refused
	haveSeen bool
	longPoll bool

	mu     sync.Mutex
	status PollStatus
}

// NewPoller checks the configuration.
func NewPoller(cfg PollConfig) (*Poller, error) {
	if cfg.Take == nil || cfg.Log == nil || cfg.MinInterval <= 0 || cfg.MaxInterval < cfg.MinInterval || cfg.LongPoll < 0 || cfg.LongPoll%time.Second != 0 {
		return nil, errors.New("poll bundle: incomplete configuration (take, log, intervals, long poll in whole seconds)")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	client, err := cfg.HTTP.client(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &Poller{cfg: cfg, client: client, longPoll: cfg.LongPoll > 0, status: PollStatus{URL: Name(cfg.URL)}}, nil
}

// Status may be called at any time.
func (p *Poller) Status() PollStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Run polls until ctx ends and returns its error. Everything else is retried.
func (p *Poller) Run(ctx context.Context) error {
	defer p.client.CloseIdleConnections()
	retry := minRetry
	for {
		began := p.cfg.Clock()
		changed, err := p.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.failing(err)
		wait := p.pause(changed, p.cfg.Clock().Sub(began))
		if err == nil {
			retry = minRetry
		} else {
			retry = min(retry, p.cfg.MaxInterval)
			wait = jitter(retry/2, retry)
			retry *= 2
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// pause is the wait after an answer that took so long; changed is whether it
// brought something new. A server that ends long polls at once is not asked at
// once again, whatever it answers.
func (p *Poller) pause(changed bool, took time.Duration) time.Duration {
	switch {
	case p.longPoll && took >= p.cfg.LongPoll/2:
		return 0
	case p.longPoll && changed:
		return min(minRetry, p.cfg.MinInterval)
	}
	return jitter(p.cfg.MinInterval, p.cfg.MaxInterval)
}

func jitter(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + rand.N(high-low)
}

// failing keeps the state for Status, and logs what is new of it.
func (p *Poller) failing(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	p.mu.Lock()
	before := p.status.Failing
	p.status.Failing = text
	if err == nil {
		p.status.Contact = p.cfg.Clock()
	}
	p.mu.Unlock()
	switch {
	case text == before:
	case text != "":
		p.cfg.Log.Warn("policy source does not answer as it should, what is in force stays", "url", Name(p.cfg.URL), "error", text)
	default:
		p.cfg.Log.Info("policy source answers again", "url", Name(p.cfg.URL))
	}
}

// once asks once; changed is whether there was something new that was taken.
func (p *Poller) once(ctx context.Context) (changed bool, err error) {
	limit := requestTime
	if p.longPoll {
		limit += p.cfg.LongPoll
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := p.cfg.HTTP.request(bounded, p.cfg.URL)
	if err != nil {
		return false, err
	}
	if p.etag != "" {
		req.Header.Set("If-None-Match", p.etag)
	}
	if p.longPoll {
		req.Header.Set("Prefer", "modes=snapshot;wait="+strconv.FormatInt(int64(p.cfg.LongPoll/time.Second), 10))
	}
	resp, err := do(p.client, req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && p.etag != "":
		return false, nil
	case resp.StatusCode != http.StatusOK:
		p.etag = ""
		return false, fmt.Errorf("the server answers %s", resp.Status)
	}
	// Only an answer with a bundle tells what the server can do.
	p.longPoll = p.cfg.LongPoll > 0 && resp.Header.Get("Content-Type") == longPollType
	data, err := readBody(Name(p.cfg.URL), resp)
	if err != nil {
		p.etag = ""
		return false, err
	}
	return p.take(ctx, data, resp.Header.Get("ETag"))
}

// take hands on what is new. What was refused is not offered again, and with
// its ETag not even fetched.
func (p *Poller) take(ctx context.Context, data []byte, etag string) (changed bool, err error) {
	sum := sha256.Sum256(data)
	if p.haveSeen && sum == p.seen {
		p.etag = etag
		return false, nil
	}
	err = p.cfg.Take(ctx, data)
	var refused policy.Refused
	if err != nil && !errors.As(err, &refused) {
		p.etag = ""
		return false, err
	}
	p.etag, p.seen, p.haveSeen = etag, sum, true
	text := ""
	if err != nil {
		text = err.Error()
		p.cfg.Log.Error("bundle of the policy source refused, what is in force stays", "url", Name(p.cfg.URL), "error", text)
	}
	p.mu.Lock()
	p.status.Refused = text
	p.mu.Unlock()
	return err == nil, nil
}

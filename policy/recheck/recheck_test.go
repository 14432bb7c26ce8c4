package recheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

const webID = "spiffe://example.org/svc/web"

func content(method string) bundle.Content {
	return bundle.Content{
		{Path: "data.json", Content: []byte(`{"writ":{"services":{"web":{"spiffe_ids":["` + webID + `"]}}}}`)},
		{Path: "web.rego", Content: []byte("package services.web\n\nallow contains \"reads\" if input.request.method == \"" + method + "\"\n\ndeny contains \"broken\" if { input.request.path == \"/error\"; to_number(input.request.host) == 1 }\n")},
	}
}

func input(method, path string) *policy.Input {
	return &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest, Source: policy.Source{ID: "spiffe://example.org/svc/a", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "web", ID: webID},
		Request:     policy.Request{Protocol: policy.HTTP, Method: method, Path: path, Segments: []string{path[1:]}, Host: "web"},
		TokenStatus: policy.TokenAbsent, Time: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

func revision(n uint64, c bundle.Content) policy.Revision {
	return policy.Revision{Epoch: 1, Number: n, Digest: c.Digest()}
}

// decided is a decision as an honest enforcement point records it.
func decided(t *testing.T, c bundle.Content, r policy.Revision, in *policy.Input) Recorded {
	t.Helper()
	program, err := opa.Load(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := program.Snapshot(opa.SnapshotConfig{Revision: r, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	rec := Recorded{ID: "d", By: webID, Input: in}
	s.Decider.Decide(context.Background(), in, &rec.Decision)
	return rec
}

// world is a Sampler with what it talks to.
type world struct {
	*Sampler
	contents map[policy.Revision]bundle.Content
	fetched  int
	acts     []identity.Act
	moved    []string
	emitErr  error
	moveErr  error
	log      strings.Builder
}

func (w *world) Diverged(_ context.Context, r policy.Revision, detail string) error {
	if w.moveErr != nil {
		return w.moveErr
	}
	w.moved = append(w.moved, r.String()+" "+detail)
	return nil
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{contents: map[policy.Revision]bundle.Content{}}
	cfg := Config{
		Every: 1, PerSecond: 1 << 20, Policy: w, Actor: "writd", Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Content: func(_ context.Context, r policy.Revision) (bundle.Content, error) {
			w.fetched++
			if c, ok := w.contents[r]; ok {
				return c, nil
			}
			return nil, errors.New("no such revision")
		},
		Agrees: func(recorded, again *policy.Decision) bool {
			return recorded.Verdict == again.Verdict && recorded.Tier == again.Tier && cmp.Equal(recorded.Rules, again.Rules)
		},
		Emit: func(_ context.Context, act identity.Act) error {
			if w.emitErr != nil {
				return w.emitErr
			}
			w.acts = append(w.acts, act)
			return nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Sampler = s
	return w
}

// offer hands in decisions and waits until Run has dealt with them.
func (w *world) offer(t *testing.T, list ...Recorded) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		// The queue belongs to the bubble that waits on it.
		w.queue = make(chan func() (Recorded, error), queued)
		go func() { defer close(done); w.Run(ctx) }()
		for _, r := range list {
			if w.Due() {
				w.Offer(func() (Recorded, error) { return r, nil })
			}
			synctest.Wait()
		}
		cancel()
		<-done
	})
}

func TestHonestDecisionsAgree(t *testing.T) {
	w := newWorld(t, nil)
	c := content("GET")
	r := revision(1, c)
	w.contents[r] = c
	w.offer(t, decided(t, c, r, input("GET", "/a")), decided(t, c, r, input("POST", "/a")))
	if got := w.Counts(); got != (Counts{Agreed: 2}) || len(w.acts)+len(w.moved) != 0 {
		t.Errorf("counts %+v, acts %v, moved %v: want two that agree", got, w.acts, w.moved)
	}
	if w.fetched != 1 {
		t.Errorf("the revision was fetched %d times", w.fetched)
	}
}

// A wrong decision of any kind is found, is alarmed once per revision, and
// moves the policy.
func TestWrongDecisionsDiverge(t *testing.T) {
	c := content("GET")
	r := revision(1, c)
	for name, tc := range map[string]struct {
		in     *policy.Input
		change func(*policy.Decision)
	}{
		"allowed for denied":   {input("POST", "/a"), func(d *policy.Decision) { d.Verdict, d.Tier = policy.Allow, policy.ServiceAllow }},
		"denied for allowed":   {input("GET", "/a"), func(d *policy.Decision) { d.Verdict, d.Tier, d.Rules = policy.Deny, policy.DefaultDeny, nil }},
		"another tier":         {input("POST", "/a"), func(d *policy.Decision) { d.Tier = policy.ServiceDeny }},
		"another rule":         {input("GET", "/a"), func(d *policy.Decision) { d.Rules[0].ID = "writes" }},
		"another line":         {input("GET", "/a"), func(d *policy.Decision) { d.Rules[0].Line++ }},
		"no rule":              {input("GET", "/a"), func(d *policy.Decision) { d.Rules = nil }},
		"allowed for an error": {input("GET", "/error"), func(d *policy.Decision) { d.Verdict, d.Tier = policy.Allow, policy.ServiceAllow }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.contents[r] = c
			wrong := decided(t, c, r, tc.in)
			tc.change(&wrong.Decision)
			w.offer(t, wrong, wrong, wrong)
			if got := w.Counts(); got != (Counts{Diverged: 3}) {
				t.Errorf("counts %+v: want three that diverge", got)
			}
			if len(w.acts) != 1 || w.acts[0].Kind != identity.ActAlarm || w.acts[0].Verb != "diverged" || w.acts[0].ObjectID != r.String() {
				t.Errorf("acts %+v: want one alarm", w.acts)
			}
			if len(w.moved) != 1 || !strings.Contains(w.moved[0], "decision d by "+webID) {
				t.Errorf("moved %q: want once", w.moved)
			}
			if n := strings.Count(w.log.String(), "decision_id=d"); n != 3 {
				t.Errorf("logged %d times, want each:\n%s", n, w.log.String())
			}
		})
	}
}

// What somebody else records of a service is an alarm, and moves nothing.
func TestOnlyTheServiceMovesPolicy(t *testing.T) {
	c := content("GET")
	r := revision(1, c)
	w := newWorld(t, nil)
	w.contents[r] = c
	wrong := decided(t, c, r, input("GET", "/a"))
	wrong.Decision.Rules = nil
	wrong.By = "spiffe://example.org/svc/a#6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	w.offer(t, wrong)
	if len(w.acts) != 1 || len(w.moved) != 0 {
		t.Errorf("by another: acts %v, moved %v", w.acts, w.moved)
	}
	wrong.By = webID + "#6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	w.offer(t, wrong)
	if len(w.acts) != 1 || len(w.moved) != 1 {
		t.Errorf("by the service: acts %v, moved %v", w.acts, w.moved)
	}
}

// A revision that never was, of a content that is known, is believed no more than
// any other: a recorder could raise an alarm for each number.
func TestMadeUpRevisions(t *testing.T) {
	c := content("GET")
	r := revision(1, c)
	w := newWorld(t, nil)
	w.contents[r] = c
	list := []Recorded{decided(t, c, r, input("GET", "/a"))}
	for n := range uint64(3) {
		wrong := decided(t, c, revision(n+2, c), input("GET", "/a"))
		wrong.Decision.Rules = nil
		list = append(list, wrong)
	}
	w.offer(t, list...)
	if got := w.Counts(); got != (Counts{Agreed: 1, Unknown: 3}) || len(w.acts) != 0 || len(w.moved) != 0 {
		t.Errorf("counts %+v, acts %v, moved %v", got, w.acts, w.moved)
	}
}

// What fails is tried again at the next difference, and each revision has its
// own alarm.
func TestTriesAgain(t *testing.T) {
	w := newWorld(t, nil)
	c, other := content("GET"), content("PUT")
	r, o := revision(1, c), revision(2, other)
	w.contents[r], w.contents[o] = c, other
	wrong := decided(t, c, r, input("POST", "/a"))
	wrong.Decision.Verdict = policy.Allow
	w.emitErr, w.moveErr = errors.New("full"), errors.New("busy")
	w.offer(t, wrong)
	if len(w.acts)+len(w.moved) != 0 {
		t.Fatal("nothing was said, and it counts as said")
	}
	w.emitErr, w.moveErr = nil, nil
	again := wrong
	again.Decision.Revision = o
	w.offer(t, wrong, wrong, again)
	if len(w.acts) != 2 || len(w.moved) != 2 {
		t.Errorf("%d alarms and %d moves, want one for each revision", len(w.acts), len(w.moved))
	}
}

// What need not be the same when it is decided again is not compared.
func TestInexactIsSkipped(t *testing.T) {
	c := content("GET")
	r := revision(1, c)
	for name, change := range map[string]func(*Recorded){
		"something is missing":          func(r *Recorded) { r.Missing = []string{"headers.x"} },
		"an error":                      func(r *Recorded) { r.Decision.Verdict, r.Decision.Tier = policy.Error, policy.Enforcement },
		"the enforcement point denied":  func(r *Recorded) { r.Decision.Verdict, r.Decision.Tier = policy.Deny, policy.Enforcement },
		"no revision":                   func(r *Recorded) { r.Decision.Revision = policy.Revision{} },
		"a record that cannot be read":  func(r *Recorded) { r.Input = nil },
		"a revision that is not known":  func(r *Recorded) { r.Decision.Revision.Number = 9 },
		"a revision of another content": func(r *Recorded) { r.Decision.Revision.Digest[0]++ },
	} {
		w := newWorld(t, nil)
		w.contents[r] = c
		rec := decided(t, c, r, input("POST", "/a"))
		rec.Decision.Verdict = policy.Allow
		change(&rec)
		w.offer(t, rec)
		if got := w.Counts(); got.Skipped+got.Unknown != 1 || got.Diverged+got.Agreed != 0 || len(w.acts)+len(w.moved) != 0 {
			t.Errorf("%s: counts %+v, acts %v: want it skipped", name, got, w.acts)
		}
	}
}

// The sample is bounded, and the record never waits for it.
func TestBounds(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	w := newWorld(t, func(cfg *Config) { cfg.PerSecond, cfg.Clock = 5, func() time.Time { return now } })
	due := 0
	for range 20 {
		if w.Due() {
			due++
		}
	}
	if got := w.Counts(); due != 5 || got.Dropped != 15 {
		t.Errorf("%d due and %d dropped, want 5 and 15", due, got.Dropped)
	}
	now = now.Add(time.Second)
	if !w.Due() {
		t.Error("none is due a second later")
	}

	// Nobody takes them out of the queue.
	w = newWorld(t, nil)
	for range queued + 10 {
		w.Offer(nil)
	}
	if got := w.Counts().Dropped; got != 10 {
		t.Errorf("%d dropped, want 10", got)
	}

	w = newWorld(t, func(cfg *Config) { cfg.Every = 100 })
	due = 0
	for range 100_000 {
		if w.Due() {
			due++
		}
	}
	// Ten standard deviations to either side.
	if due < 685 || due > 1315 {
		t.Errorf("%d of 100,000 are due, want about 1,000", due)
	}
}

// A few revisions are kept ready.
func TestCache(t *testing.T) {
	w := newWorld(t, nil)
	var list []Recorded
	for i := range prepared + 2 {
		c := content(fmt.Sprint("M", i))
		r := revision(uint64(i+1), c)
		w.contents[r] = c
		list = append(list, decided(t, c, r, input("GET", "/a")))
	}
	w.offer(t, list...)
	last := list[len(list)-prepared:]
	w.offer(t, append(last, last...)...)
	if got := w.Counts(); w.fetched != prepared+2 || len(w.cache) != prepared || got.Agreed != uint64(len(list)+2*prepared) {
		t.Errorf("fetched %d, %d kept, counts %+v", w.fetched, len(w.cache), got)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Every: 1}); err == nil {
		t.Error("an incomplete configuration is taken")
	}
}

// What looked outside of the input is not asked again, and is no difference.
func TestWhatLooksOutsideIsSkipped(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1) }))
	defer server.Close()
	c := bundle.Content{
		{Path: "data.json", Content: fmt.Appendf(nil, `{"writ":{"services":{"web":{"spiffe_ids":["`+webID+`"]}},"outside":{"http.send":{"hosts":[%q],"timeout":"10s"}}}}`, server.URL)},
		{Path: "web.rego", Content: fmt.Appendf(nil, "package services.web\n\nallow contains \"reads\" if input.request.method == \"GET\"\n\n"+
			"allow contains \"ask\" if {\n\tinput.request.method == \"POST\"\n\thttp.send({\"method\": \"GET\", \"url\": %q}).status_code == 200\n}\n", server.URL)},
	}
	r := revision(1, c)
	program, err := opa.Load(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := program.Snapshot(opa.SnapshotConfig{Revision: r, Timeout: time.Minute, Outside: &opa.Outside{}})
	if err != nil {
		t.Fatal(err)
	}
	rec := Recorded{ID: "d", By: webID, Input: input("POST", "/a")}
	if s.Decider.Decide(t.Context(), rec.Input, &rec.Decision); rec.Decision.Verdict != policy.Allow || asked.Load() != 1 {
		t.Fatalf("asked %d times: %+v", asked.Load(), rec.Decision)
	}
	w := newWorld(t, nil)
	w.contents[r] = c
	w.offer(t, rec, decided(t, c, r, input("GET", "/a")))
	if got := w.Counts(); got != (Counts{Skipped: 1, Agreed: 1}) || len(w.acts)+len(w.moved) != 0 || asked.Load() != 1 {
		t.Errorf("counts %+v, acts %v, moved %v, asked %d times: want one that is skipped", got, w.acts, w.moved, asked.Load())
	}
}

// Package follow keeps an enforcement point on the control plane's policy.
//
// A Follower first puts in force the slice that it kept on disk, before any
// network, and then follows policyv1.Distribution: each slice is verified
// against pinned keys, prepared, kept, put in force and acknowledged. Whatever
// goes wrong on the way leaves the last good slice in force, and the control
// plane hears why.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/program"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	// DefaultSilence is three heartbeats of the control plane and some.
	DefaultSilence = 35 * time.Second
)

// Config is what a Follower needs. Report and what has a default may be
// left out.
type Config struct {
	// Conn leads to the control plane, by mTLS; it reconnects by itself.
	Conn grpc.ClientConnInterface
	// Keys are the pinned decision keys.
	Keys bundle.Keys
	// Publishers, when set, are whom the follower trusts: it asks for their
	// sources, verifies each part, and cuts and compiles what is its own. The
	// decision keys are believed about the order of revisions only.
	Publishers *owners.Set
	// Optional names publishers whose part need not be there.
	Optional []string
	// Dir is where the last verified slice is kept, made with mode 0700.
	Dir string
	// SPIFFEID is the ID of the own SVID.
	SPIFFEID func() spiffeid.ID
	// Instance tells this follower from others with its SPIFFE ID, the same
	// after a restart; rollouts choose by it. It may be empty.
	Instance string
	// Service is the service's name, for reports; empty for a mere caller.
	Service string
	// Report gives what is told beside service, revision and refusals.
	Report func() *policyv1.Report
	// Activate puts a snapshot in force. It is called by one goroutine.
	Activate func(*policy.Snapshot)
	// Emit, when set, puts a refused slice on record, each reason once in a row.
	Emit identity.Emit
	// Contacted, when set, is told when the control plane was last heard, each
	// time that it is.
	Contacted func(time.Time)
	Log       *slog.Logger
	// Clock is time.Now when nil.
	Clock func() time.Time
	// Silence is the time after which a stream without a message is given up;
	// DefaultSilence when 0.
	Silence time.Duration
	// DecisionTimeout of one decision; opa.DefaultTimeout when 0.
	DecisionTimeout time.Duration
	// Outside is the way out for policy that looks outside of its input. When
	// nil, a slice that would is refused.
	Outside *opa.Outside
}

// Follower follows one control plane. Create it with New, then Run it once.
type Follower struct {
	cfg Config
	// Used by Run's goroutine only.
	kept    policy.Revision
	refused string
	// counted counts the decisions of what is in force; engine makes them.
	counted *counted
	engine  string

	mu          sync.Mutex
	current     policy.Revision
	lastContact time.Time
}

// New makes a Follower.
func New(cfg Config) (*Follower, error) {
	if cfg.Conn == nil || len(cfg.Keys) == 0 || cfg.Dir == "" || cfg.SPIFFEID == nil || cfg.Activate == nil || cfg.Log == nil {
		return nil, errors.New("follow policy: incomplete configuration (connection, keys, directory, SPIFFE ID, activation, log)")
	}
	if cfg.Report == nil {
		cfg.Report = func() *policyv1.Report { return &policyv1.Report{} }
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Silence == 0 {
		cfg.Silence = DefaultSilence
	}
	return &Follower{cfg: cfg}, nil
}

// Run is New and Run in one.
func Run(ctx context.Context, cfg Config) error {
	f, err := New(cfg)
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

// LastContact is when the control plane was last heard, also before this
// process started as far as the kept slice tells; zero is never.
func (f *Follower) LastContact() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastContact
}

// Revision is what is in force, zero for none.
func (f *Follower) Revision() policy.Revision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// Run follows until ctx ends and returns its error. Everything else is
// retried, with backoff.
func (f *Follower) Run(ctx context.Context) error {
	if err := f.load(); err != nil {
		f.cfg.Log.Error("kept policy slice is not usable", "dir", f.cfg.Dir, "error", err)
	}
	backoff := minBackoff
	for {
		heard, err := f.watch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if heard {
			backoff = minBackoff
		}
		wait := backoff/2 + rand.N(backoff/2)
		f.cfg.Log.Warn("policy stream ended", "error", err, "retry_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// watch follows one stream to its end; heard is whether anything came.
func (f *Follower) watch(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if f.cfg.Instance != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, policyv1.InstanceKey, f.cfg.Instance)
	}
	stream, err := policyv1.NewDistributionClient(f.cfg.Conn).Watch(ctx, grpc.MaxCallRecvMsgSize(bundle.MaxArchiveBytes+1<<16))
	if err != nil {
		return false, err
	}
	// A peer that vanished without a word would be waited for without end.
	silence := time.AfterFunc(f.cfg.Silence, func() {
		cancel(fmt.Errorf("nothing heard for %v", f.cfg.Silence))
	})
	defer silence.Stop()
	if err := f.send(stream); err != nil {
		return false, err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return heard, err
		}
		heard = true
		silence.Reset(f.cfg.Silence)
		f.contact()
		if len(msg.Bundle) > 0 {
			f.take(ctx, msg.Bundle)
		}
		if err := f.send(stream); err != nil {
			return heard, err
		}
	}
}

// send reports what runs. It acknowledges each message, so that what changes
// here, such as the SVID's expiry, is known at the next heartbeat.
func (f *Follower) send(stream grpc.BidiStreamingClient[policyv1.WatchRequest, policyv1.Slice]) error {
	report := f.cfg.Report()
	report.Service, report.Refused, report.Revision = f.cfg.Service, f.refused, nil
	if r := f.Revision(); !r.IsZero() {
		report.Revision = &policyv1.Revision{Epoch: r.Epoch, Number: r.Number, Digest: r.Digest[:]}
	}
	if f.counted != nil {
		report.Decisions, report.Denied = f.counted.counts()
		report.Engine = f.engine
	}
	err := stream.Send(&policyv1.WatchRequest{Report: report, WantSources: f.cfg.Publishers != nil})
	if errors.Is(err, io.EOF) {
		return nil // The reason comes with the next Recv.
	}
	return err
}

// take puts a slice in force, or remembers why not.
func (f *Follower) take(ctx context.Context, data []byte) {
	slice, err := f.open(data)
	if err == nil {
		err = f.advance(slice, data)
	}
	before := f.refused
	f.refused = ""
	if err == nil {
		return
	}
	f.refused = err.Error()
	f.cfg.Log.Error("policy slice refused, the last good one stays", "in_force", f.Revision().String(), "error", err)
	if f.cfg.Emit == nil || f.refused == before {
		return
	}
	id := f.cfg.SPIFFEID().String()
	act := identity.Act{Kind: identity.ActPolicy, Verb: "refused", Actor: id, Object: "policy slice", ObjectID: id, Failed: true, Reason: f.refused,
		Details: [][2]string{{"in_force", f.Revision().String()}}}
	if err := f.cfg.Emit(ctx, act); err != nil {
		f.cfg.Log.Error("the refusal of a policy slice is not on record", "error", err)
	}
}

// open verifies what the control plane sent, or what was kept of it.
func (f *Follower) open(data []byte) (*bundle.Slice, error) {
	id := f.cfg.SPIFFEID()
	if f.cfg.Publishers == nil {
		return bundle.OpenSlice(data, f.cfg.Keys, id)
	}
	src, err := bundle.OpenSources(data, f.cfg.Keys, id)
	if err != nil {
		return nil, err
	}
	content, err := f.cfg.Publishers.Assemble(src.Parts, f.cfg.Optional...)
	if err != nil {
		return nil, fmt.Errorf("policy sources: %w", err)
	}
	if digest := content.Digest(); digest != src.Revision.Digest {
		return nil, fmt.Errorf("policy sources: the parts together are %x, and revision %v is not", digest[:6], src.Revision)
	}
	cutter, err := bundle.NewCutter(content)
	if err != nil {
		return nil, err
	}
	slice, err := cutter.Cut(bundle.SliceConfig{Revision: src.Revision, Activated: src.Activated, SPIFFEID: id})
	if err != nil {
		return nil, err
	}
	slice.Evaluate = src.Evaluate
	return slice, nil
}

func (f *Follower) advance(slice *bundle.Slice, data []byte) error {
	current := f.Revision()
	if slice.Revision != current {
		if !slice.Revision.Newer(current) {
			return fmt.Errorf("revision %v is not newer than %v, which is in force", slice.Revision, current)
		}
		snapshot, err := f.prepare(slice)
		if err != nil {
			return err
		}
		// Kept first, so that a crash cannot go back behind what was enforced.
		// A disk that fails must not hold a change back, though: it may be one
		// that takes a right away.
		f.keep(slice.Revision, data)
		f.activate(snapshot)
		return nil
	}
	if f.kept != current {
		f.keep(current, data)
	}
	return nil
}

func (f *Follower) activate(snapshot *policy.Snapshot) {
	f.counted = &counted{Decider: snapshot.Decider}
	inForce := *snapshot
	inForce.Decider = f.counted
	f.cfg.Activate(&inForce)
	f.mu.Lock()
	f.current = snapshot.Revision
	f.mu.Unlock()
	f.cfg.Log.Info("policy in force", "revision", snapshot.Revision.String(), "services", len(snapshot.Services))
}

// prepare makes a slice ready to decide: by its compiled form where it carries
// one that this build reads, by its sources otherwise. Who trusts publishers
// compiles what they signed, unless the control plane says to evaluate it: that
// can make it slower and nothing else.
func (f *Follower) prepare(slice *bundle.Slice) (*policy.Snapshot, error) {
	if names := slice.Catalogue.Outside.Builtins(); len(names) > 0 && f.cfg.Outside == nil {
		return nil, fmt.Errorf("the rules use %s, which looks outside of the input, and policy.allow_outside is not set here", strings.Join(names, ", "))
	}
	cfg := opa.SnapshotConfig{Revision: slice.Revision, Activated: slice.Activated, Timeout: f.cfg.DecisionTimeout, Outside: f.cfg.Outside}
	load := func() (*opa.Program, error) { return opa.Load(slice.Content) }
	compiled := f.compiled(slice)
	if f.cfg.Publishers != nil {
		p, err := load()
		if err != nil {
			return nil, err
		}
		load = func() (*opa.Program, error) { return p, nil }
		if slice.Evaluate {
			f.cfg.Log.Warn("the policy is evaluated, not compiled, as the control plane says", "revision", slice.Revision.String())
		} else if compiled, _, err = compile.Compile(context.Background(), p, compile.Config{}); err != nil {
			f.cfg.Log.Error("the policy cannot be compiled, its sources are evaluated", "revision", slice.Revision.String(), "error", err)
		}
	}
	f.engine = compile.EngineTopdown
	if compiled != nil {
		f.engine = compile.EngineOf(compiled)
	}
	return compile.Snapshot(load, compiled, slice.Catalogue.Services, cfg)
}

// compiled is the slice's compiled form, nil when the sources decide. The
// signature is verified; what is checked here is that a program is of the very
// content and services that it came with.
func (f *Follower) compiled(slice *bundle.Slice) *program.Program {
	if slice.Program == nil {
		return nil
	}
	p, err := program.Decode(slice.Program)
	switch {
	case err != nil:
		f.cfg.Log.Warn("the compiled policy cannot be read here, its sources are evaluated", "revision", slice.Revision.String(), "error", err)
		return nil
	case p.Digest != slice.Revision.Digest || slices.ContainsFunc(p.Units, func(u program.Unit) bool { return !slices.Contains(slice.Services, u.Service) }):
		f.cfg.Log.Error("the compiled policy is of another policy, the sources are evaluated", "revision", slice.Revision.String())
		return nil
	}
	return p
}

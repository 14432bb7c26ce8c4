package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/simulate"
)

// Engines of a simulation.
const (
	engineCompiled = "compiled"
	engineTopdown  = "topdown"
)

// simulationTimeout of one decision. It is longer than an enforcement point's:
// what is slow here is not denied there.
const simulationTimeout = 10 * time.Second

// prepared is a policy that is ready to decide, and knows what the enforcement
// point of each destination reads of it.
type prepared struct {
	name, revision string
	digest         [32]byte
	snapshot       *policy.Snapshot
	content        bundle.Content
	// ids of the services' workloads.
	ids map[string]bool

	mu     sync.Mutex
	cutter *bundle.Cutter
	byID   map[string]*policy.Reads
}

func (p *prepared) side() simulate.Side {
	return simulate.Side{Decider: p.snapshot.Decider, Digest: p.digest, Services: p.snapshot.Services, Reads: p.reads}
}

func readsAny(r *policy.Reads) bool {
	return r.AllHeaders || r.AllQuery || len(r.Headers)+len(r.Query) > 0
}

func (p *prepared) readsAny() bool { return readsAny(&p.snapshot.Reads) }

// newPrepared is a policy with its services' names looked up.
func newPrepared(name string, content bundle.Content, snapshot *policy.Snapshot) *prepared {
	p := &prepared{name: name, digest: content.Digest(), snapshot: snapshot, content: content, ids: map[string]bool{}, byID: map[string]*policy.Reads{}}
	for _, s := range snapshot.Services {
		for _, id := range s.SPIFFEIDs {
			p.ids[id] = true
		}
	}
	return p
}

// reads is what the enforcement point at a destination reads at most.
func (p *prepared) reads(d policy.Destination) *policy.Reads {
	if r := p.sliceReads(d); r != nil {
		return r
	}
	return &p.snapshot.Reads
}

// sliceReads is what the enforcement point at a destination reads: its slice of
// the policy may read less than the whole, and what is on record depends on
// that. It is nil where there is no such slice.
func (p *prepared) sliceReads(d policy.Destination) *policy.Reads {
	if !p.readsAny() {
		return &p.snapshot.Reads
	}
	// Workloads that are no service have the same slice, and there may be many.
	id := ""
	if p.ids[d.ID] {
		id = d.ID
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r, known := p.byID[id]
	if !known {
		// A name that is none has no slice.
		if cut, err := p.cut(d.ID); err == nil {
			r = cut
			p.byID[id] = r
		}
	}
	return r
}

func (p *prepared) cut(id string) (*policy.Reads, error) {
	name, err := spiffeid.FromString(id)
	if err != nil {
		return nil, err
	}
	if p.cutter == nil {
		if p.cutter, err = bundle.NewCutter(p.content); err != nil {
			return nil, err
		}
	}
	slice, err := p.cutter.Cut(bundle.SliceConfig{SPIFFEID: name})
	if err != nil {
		return nil, err
	}
	program, err := opa.Load(slice.Content)
	if err != nil {
		return nil, err
	}
	snapshot, err := program.Snapshot(opa.SnapshotConfig{})
	if err != nil {
		return nil, err
	}
	return &snapshot.Reads, nil
}

// contents knows the policies that take part, and fetches those that decided.
type contents struct {
	app     *app
	offline bool
	engine  string

	mu sync.Mutex
	// known by digest; nil is a content that is not to be had.
	known map[[32]byte]*prepared
}

func (c *contents) candidate(ctx context.Context, s *simulation) (*prepared, error) {
	content, program, problems, err := s.from.check(ctx, s.candidate)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, c.app.notInOrder(s.candidate, problems)
	}
	return c.prepare(ctx, s.candidate, content, program)
}

// baseline is nil where the decisions are compared as they were recorded.
func (c *contents) baseline(ctx context.Context, s *simulation) (*prepared, error) {
	switch {
	case s.baseline == baselineRecorded, s.baseline == "" && c.offline:
		return nil, nil
	case s.baseline == "":
		return c.show(ctx, 0)
	}
	if number, err := strconv.ParseUint(s.baseline, 10, 63); err == nil && number > 0 {
		if _, err := os.Stat(s.baseline); err != nil {
			return c.show(ctx, number)
		}
	}
	// The catalogue of the mesh file is the candidate's too, unless the
	// baseline brings its own.
	from := sourceFlags{verificationKeys: s.from.verificationKeys, tokenFile: s.from.tokenFile, caCerts: s.from.caCerts}
	src, err := from.open(ctx, s.baseline)
	if err != nil {
		return nil, err
	}
	if _, own := src.Content.File(catalogueFile); !own && s.from.mesh != "" {
		from.mesh = s.from.mesh
		if src, err = from.open(ctx, s.baseline); err != nil {
			return nil, err
		}
	}
	program, err := opa.Load(src.Content)
	if err != nil {
		return nil, err
	}
	return c.prepare(ctx, s.baseline, src.Content, program)
}

// prepare makes a policy ready, by the engine that was asked for.
func (c *contents) prepare(ctx context.Context, name string, content bundle.Content, program *opa.Program) (*prepared, error) {
	cfg := opa.SnapshotConfig{Revision: policy.Revision{Digest: content.Digest()}, Timeout: simulationTimeout}
	var snapshot *policy.Snapshot
	var err error
	if c.engine == engineTopdown {
		snapshot, err = program.Snapshot(cfg)
	} else {
		compiled, _, cerr := compile.Compile(ctx, program, compile.Config{})
		if cerr != nil {
			return nil, cerr
		}
		snapshot, err = compile.Snapshot(func() (*opa.Program, error) { return program, nil }, compiled, program.Catalogue().Services, cfg)
	}
	if err != nil {
		return nil, err
	}
	p := newPrepared(name, content, snapshot)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[p.digest] = p
	return p, nil
}

// show fetches a revision from the control plane and prepares it.
func (c *contents) show(ctx context.Context, number uint64) (*prepared, error) {
	revision, content, err := c.fetch(ctx, number)
	if err != nil {
		return nil, err
	}
	program, err := opa.Load(content)
	if err != nil {
		return nil, fmt.Errorf("revision %s: %w", revisionText(revision), err)
	}
	p, err := c.prepare(ctx, "revision "+strconv.FormatUint(revision.GetNumber(), 10), content, program)
	if err != nil {
		return nil, err
	}
	p.revision = revisionText(revision)
	return p, nil
}

func (c *contents) fetch(ctx context.Context, number uint64) (*policyv1.Revision, bundle.Content, error) {
	var resp *policyv1.ShowResponse
	err := c.app.policyAdmin(func(client policyv1.AdminClient) (err error) {
		resp, err = client.Show(ctx, &policyv1.ShowRequest{Number: number}, largeAnswer())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	var files []bundle.File
	for _, f := range resp.GetFiles() {
		files = append(files, bundle.File{Path: f.GetPath(), Content: f.GetContent()})
	}
	content, err := bundle.NewContent(files)
	if err != nil {
		return nil, nil, err
	}
	revision := resp.GetInfo().GetRevision()
	if digest := content.Digest(); !bytes.Equal(digest[:], revision.GetDigest()) {
		return nil, nil, errors.New("the control plane gives a content that is not the revision's")
	}
	return revision, content, nil
}

// maxKnown bounds how many revisions that decided are fetched: a record over a
// long time can hold many.
const maxKnown = 256

// reads is what the policy that decided a record read, nil when it is not
// known.
func (c *contents) reads(ctx context.Context, r policy.Revision, d policy.Destination) *policy.Reads {
	if r.IsZero() {
		return nil
	}
	c.mu.Lock()
	p, known := c.known[r.Digest]
	full := len(c.known) >= maxKnown
	c.mu.Unlock()
	if !known && !c.offline && !full {
		p = c.past(ctx, r)
	}
	if p == nil {
		return nil
	}
	return p.sliceReads(d)
}

// past fetches the content of a revision, once. Only what it reads matters, so
// that it is prepared for topdown.
func (c *contents) past(ctx context.Context, r policy.Revision) *prepared {
	var p *prepared
	if _, content, err := c.fetch(ctx, r.Number); err == nil && content.Digest() == r.Digest {
		if program, err := opa.Load(content); err == nil {
			if snapshot, err := program.Snapshot(opa.SnapshotConfig{}); err == nil {
				p = newPrepared("", content, snapshot)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, known := c.known[r.Digest]; known {
		return other
	}
	c.known[r.Digest] = p
	return p
}

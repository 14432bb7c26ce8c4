package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

const (
	// Entries written at each real agent. SPIRE takes seconds for one.
	entriesPushed, entriesPolled = 120, 4
	// churn is how often an entry of one of the other agents is written.
	churn = 50 * time.Millisecond
	// propagationTimeout is when an entry counts as lost.
	propagationTimeout = time.Minute
)

// propagation measures how long it takes from the writing of an entry until its
// SVID is on the stream of a workload: 10,000 entries, 100 agents, workloads at
// the real ones, while entries of the others are written as well.
func (b *bench) propagation(ctx context.Context, at *site, s *samples) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	count := entriesPolled
	if at.subject == ours {
		count = entriesPushed
	}
	var mu sync.Mutex
	var took []time.Duration
	var errs []error
	churning, stop := context.WithCancel(ctx)
	var background, measuring sync.WaitGroup
	background.Go(func() { at.churn(churning) })
	for n, a := range at.agents {
		measuring.Go(func() {
			mine, err := at.propagate(ctx, a, n, count)
			mu.Lock()
			defer mu.Unlock()
			took, errs = append(took, mine...), append(errs, err)
		})
	}
	measuring.Wait()
	stop()
	background.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	slices.Sort(took)
	s.add("propagation-p99", at.subject, "ms", percentile(took, 99).Seconds()*1e3)
	return nil
}

// propagate writes entries at one agent, one after another, and waits for each.
func (s *site) propagate(ctx context.Context, a *siteAgent, n, count int) ([]time.Duration, error) {
	w, err := s.workload(ctx, a, n)
	if err != nil {
		return nil, err
	}
	defer w.close()
	var took []time.Duration
	for i := range count {
		path := fmt.Sprintf("/new/%d-%d", n, i)
		e, err := s.server.Entry(a.id, path, me())
		if err != nil {
			return nil, err
		}
		start := time.Now()
		ids, err := s.server.CreateEntries(ctx, e)
		if err != nil {
			return nil, err
		}
		if err := w.until(ctx, func(have []string) bool { return slices.Contains(have, path) }); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		took = append(took, time.Since(start))
		if err := s.server.DeleteEntry(ctx, ids[0]); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// me is the selector of this process.
func me() string { return fmt.Sprintf("unix:uid:%d", os.Getuid()) }

// churn writes and deletes entries of the agents that are not real.
func (s *site) churn(ctx context.Context) {
	tick := time.NewTicker(churn)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		agent := s.agentID(realAgents + rand.IntN(siteAgents-realAgents))
		e, err := s.server.Entry(agent, fmt.Sprintf("/churn/%d", i), me())
		if err != nil {
			return
		}
		// That the server does not keep up shows in what is measured.
		if ids, err := s.server.CreateEntries(ctx, e); err == nil {
			_ = s.server.DeleteEntry(ctx, ids[0])
		}
	}
}

// workload is this process with a stream open at an agent.
type workload struct {
	client  *workloadapi.Client
	cancel  context.CancelFunc
	done    sync.WaitGroup
	updates chan []string // paths of all SVIDs, as of the last message
}

// workload opens a stream. An entry of its own keeps it open.
func (s *site) workload(ctx context.Context, a *siteAgent, n int) (*workload, error) {
	base := fmt.Sprintf("/base/%d", n)
	e, err := s.server.Entry(a.id, base, me())
	if err != nil {
		return nil, err
	}
	if err := s.ensureEntry(ctx, e); err != nil {
		return nil, err
	}
	return watch(ctx, a, func(have []string) bool { return slices.Contains(have, base) })
}

// watch opens a stream at an agent and waits until it has what is wanted.
func watch(ctx context.Context, a *siteAgent, wanted func([]string) bool) (*workload, error) {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+a.socket))
	if err != nil {
		return nil, err
	}
	streaming, cancel := context.WithCancel(ctx)
	w := &workload{client: client, cancel: cancel, updates: make(chan []string, 1)}
	w.done.Go(func() { _ = client.WatchX509Context(streaming, w) })
	if err := w.until(ctx, wanted); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// ensureEntry makes an entry that may be there already.
func (s *site) ensureEntry(ctx context.Context, e *types.Entry) error {
	res, err := entryv1.NewEntryClient(s.server.Admin()).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		return err
	}
	status := res.GetResults()[0].GetStatus()
	if c := codes.Code(status.GetCode()); c != codes.OK && c != codes.AlreadyExists {
		return fmt.Errorf("create entry: %s", status.GetMessage())
	}
	return nil
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher. Only the last
// update is kept: each is the whole state.
func (w *workload) OnX509ContextUpdate(u *workloadapi.X509Context) {
	paths := make([]string, len(u.SVIDs))
	for i, svid := range u.SVIDs {
		paths[i] = svid.ID.Path()
	}
	select {
	case <-w.updates:
	default:
	}
	w.updates <- paths
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher: the client
// tries again by itself.
func (w *workload) OnX509ContextWatchError(error) {}

func (w *workload) until(ctx context.Context, wanted func([]string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, propagationTimeout)
	defer cancel()
	for {
		select {
		case have := <-w.updates:
			if wanted(have) {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("the SVID did not come: %w", ctx.Err())
		}
	}
}

func (w *workload) close() {
	w.cancel()
	w.done.Wait()
	_ = w.client.Close()
}

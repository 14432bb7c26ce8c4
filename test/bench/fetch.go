package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// fetch measures one-shot fetches of an X509-SVID at an agent, over a connection
// that is kept: the time of one by a lone client, and how many 8 clients get.
func (b *bench) fetch(ctx context.Context, at *site, s *samples) error {
	a := at.agents[0]
	w, err := at.workload(ctx, a, 0) // its entry is there from now on
	if err != nil {
		return err
	}
	w.close()
	_, took, err := fetchX509(ctx, a, 1, b.length)
	if err != nil {
		return err
	}
	s.add("fetch-p50", at.subject, "ms", percentile(took, 50).Seconds()*1e3)
	rate, _, err := fetchX509(ctx, a, 8, b.length)
	if err != nil {
		return err
	}
	s.add("fetch", at.subject, "/s", rate)
	return nil
}

func fetchX509(ctx context.Context, a *siteAgent, clients int, length time.Duration) (rate float64, took []time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	var mu sync.Mutex
	var done sync.WaitGroup
	start := time.Now()
	for range clients {
		client, cerr := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+a.socket))
		if cerr != nil {
			return 0, nil, cerr
		}
		defer client.Close()
		done.Go(func() {
			var mine []time.Duration
			var failed error
			for time.Since(start) < length && failed == nil {
				begin := time.Now()
				if _, failed = client.FetchX509SVID(ctx); failed == nil {
					mine = append(mine, time.Since(begin))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if failed != nil {
				err = failed
			}
		})
	}
	done.Wait()
	elapsed := time.Since(start)
	if err != nil {
		return 0, nil, fmt.Errorf("fetch: %w", err)
	}
	slices.Sort(took)
	return float64(len(took)) / elapsed.Seconds(), took, nil
}

// agentOf1000 starts an agent of its own, has a workload there with 1,000 SVIDs
// on one stream, and looks at what the agent holds then.
func (b *bench) agentOf1000(ctx context.Context, at *site, s *samples) error {
	const svids = 1000
	token, err := at.server.JoinToken(ctx, spiffeid.ID{})
	if err != nil {
		return err
	}
	id := spiffeid.RequireFromSegments(at.server.TrustDomain, "spire", "agent", "join_token", token)
	entries := make([]*types.Entry, svids)
	for i := range entries {
		if entries[i], err = at.server.Entry(id, fmt.Sprintf("/thousand/s%d", i), me()); err != nil {
			return err
		}
	}
	if _, err := createEntries(ctx, at.server, entries); err != nil {
		return err
	}
	a, err := b.startAgent(ctx, at, token, "")
	if err != nil {
		return err
	}
	at.agents = append(at.agents, a)
	w, err := watch(ctx, a, func(have []string) bool { return len(have) == svids })
	if err != nil {
		return err
	}
	defer w.close()
	return b.settledRSS(ctx, s, "rss/agent-1000", at.subject, a.PID())
}

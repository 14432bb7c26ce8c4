package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/test/programs"
)

const (
	siteAgents  = 100
	siteEntries = 10_000
	entryBatch  = 500
)

// site starts a server, looks at what it holds when empty, and measures how fast
// it takes 10,000 entries for 100 agents: batches of 500, one after another.
func (b *bench) site(ctx context.Context, subject string, s *samples) (*site, error) {
	server, err := b.issuer(ctx, subject)
	if err != nil {
		return nil, err
	}
	at := &site{subject: subject, server: server}
	if err := b.settledRSS(ctx, s, "rss/server-empty", subject, server.PID()); err != nil {
		return at, err
	}
	for range siteAgents {
		token, err := server.JoinToken(ctx, spiffeid.ID{})
		if err != nil {
			return at, err
		}
		at.tokens = append(at.tokens, token)
	}
	entries := make([]*types.Entry, siteEntries)
	for i := range entries {
		// Of users that do not exist: nobody asks for these SVIDs.
		agent := at.agentID(i % siteAgents)
		if entries[i], err = server.Entry(agent, fmt.Sprintf("/svc/s%d", i), fmt.Sprintf("unix:uid:%d", 1_000_000+i)); err != nil {
			return at, err
		}
	}
	took, err := createEntries(ctx, server, entries)
	if err != nil {
		return at, err
	}
	s.add("entry-create", subject, "/s", float64(len(entries))/took.Seconds())
	return at, nil
}

// agentID is the name of the agent that uses a token.
func (s *site) agentID(n int) spiffeid.ID {
	return spiffeid.RequireFromSegments(s.server.TrustDomain, "spire", "agent", "join_token", s.tokens[n])
}

// createEntries creates entries in batches and says how long the server took.
func createEntries(ctx context.Context, server *programs.Server, entries []*types.Entry) (took time.Duration, err error) {
	client := entryv1.NewEntryClient(server.Admin())
	for first := 0; first < len(entries); first += entryBatch {
		req := &entryv1.BatchCreateEntryRequest{Entries: entries[first:min(first+entryBatch, len(entries))]}
		start := time.Now()
		res, err := client.BatchCreateEntry(ctx, req)
		took += time.Since(start)
		if err != nil {
			return 0, fmt.Errorf("create entries: %w", err)
		}
		for _, r := range res.GetResults() {
			if codes.Code(r.GetStatus().GetCode()) != codes.OK {
				return 0, fmt.Errorf("create entry: %s", r.GetStatus().GetMessage())
			}
		}
	}
	return took, nil
}

// serverOf100k brings a server to 100,000 entries and looks at what it holds.
func (b *bench) serverOf100k(ctx context.Context, at *site, s *samples) (err error) {
	at.leave()
	entries := make([]*types.Entry, 100_000-siteEntries)
	for i := range entries {
		node := spiffeid.RequireFromSegments(at.server.TrustDomain, "node", fmt.Sprint(i%siteAgents))
		if entries[i], err = at.server.Entry(node, fmt.Sprintf("/many/s%d", i), fmt.Sprintf("unix:uid:%d", 2_000_000+i)); err != nil {
			return err
		}
	}
	if _, err := createEntries(ctx, at.server, entries); err != nil {
		return err
	}
	return b.settledRSS(ctx, s, "rss/server-100k", at.subject, at.server.PID())
}

// settledRSS is what a process holds after a rest.
func (b *bench) settledRSS(ctx context.Context, s *samples, measure, subject string, pid int) error {
	if err := pause(ctx, b.length); err != nil {
		return err
	}
	m, err := programs.MemoryOf(pid)
	if err != nil {
		return err
	}
	s.add(measure, subject, "MB", float64(m.RSS)/1e6)
	return nil
}

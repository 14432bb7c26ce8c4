package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/test/programs"
)

// entriesPerIssuer is the size of the largest batch.
const entriesPerIssuer = 500

// signing measures how fast SVIDs are signed for an agent: over TLS, by servers
// with 500 entries. The client runs on the same machine and has its CSRs ready.
func (b *bench) signing(ctx context.Context, subjects []string) (rows []Row, err error) {
	nodes := map[string]*joined{}
	for _, subject := range subjects {
		n, err := b.join(ctx, subject)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", subject, err)
		}
		defer func() { err = errors.Join(err, n.stop()) }()
		nodes[subject] = n
	}
	return b.rotate(ctx, subjects, func(subject string, s *samples) error {
		return nodes[subject].round(ctx, b.length, s, subject)
	})
}

// joined is an agent with entries at a running issuer.
type joined struct {
	node    *programs.Node
	entries []string
	csrs    [][]byte
	stop    func() error
	// cpu is the processor time of server and client together.
	cpu func() (time.Duration, error)
	say func(format string, args ...any)
}

func (b *bench) join(ctx context.Context, subject string) (*joined, error) {
	server, err := b.issuer(ctx, subject)
	if err != nil {
		return nil, err
	}
	n := &joined{stop: server.Stop, say: b.say, cpu: func() (time.Duration, error) { return cpuOf(server.PID()) }}
	if err := n.prepare(ctx, server); err != nil {
		_ = n.stop()
		return nil, err
	}
	return n, nil
}

func (n *joined) prepare(ctx context.Context, server *programs.Server) error {
	token, err := server.JoinToken(ctx, spiffeid.ID{})
	if err != nil {
		return err
	}
	if n.node, err = server.Attest(ctx, token); err != nil {
		return err
	}
	entries := make([]*types.Entry, entriesPerIssuer)
	for i := range entries {
		if entries[i], err = server.Entry(n.node.SVID.ID, fmt.Sprintf("/svc/s%d", i), fmt.Sprintf("unix:uid:%d", i)); err != nil {
			return err
		}
	}
	if n.entries, err = server.CreateEntries(ctx, entries...); err != nil {
		return err
	}
	n.csrs = make([][]byte, entriesPerIssuer)
	for i := range n.csrs {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		if n.csrs[i], err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
			return err
		}
	}
	// SPIRE signs for an entry only once its cache holds it.
	conn, err := n.node.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return server.Until(ctx, func() error {
		res, err := entryv1.NewEntryClient(conn).GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
		if err == nil && len(res.GetEntries()) != entriesPerIssuer {
			err = fmt.Errorf("%d of %d entries are authorized", len(res.GetEntries()), entriesPerIssuer)
		}
		return err
	})
}

func (n *joined) round(ctx context.Context, length time.Duration, s *samples, subject string) error {
	rate, took, err := n.drive(ctx, "batch 1", length, 8, func(ctx context.Context, conn *grpc.ClientConn, i int) (int, error) {
		return n.x509SVIDs(ctx, conn, i%entriesPerIssuer, 1)
	})
	if err != nil {
		return fmt.Errorf("batch 1: %w", err)
	}
	s.add("svid/batch1", subject, "/s", rate)
	s.add("svid/batch1-p99", subject, "ms", percentile(took, 99).Seconds()*1e3)
	rate, _, err = n.drive(ctx, "batch 500", length, 4, func(ctx context.Context, conn *grpc.ClientConn, _ int) (int, error) {
		return n.x509SVIDs(ctx, conn, 0, entriesPerIssuer)
	})
	if err != nil {
		return fmt.Errorf("batch 500: %w", err)
	}
	s.add("svid/batch500", subject, "/s", rate)
	rate, _, err = n.drive(ctx, "JWT", length, 8, func(ctx context.Context, conn *grpc.ClientConn, i int) (int, error) {
		_, err := svidv1.NewSVIDClient(conn).NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: n.entries[i%entriesPerIssuer], Audience: []string{"bench"}})
		return 1, err
	})
	if err != nil {
		return fmt.Errorf("JWT: %w", err)
	}
	s.add("jwt", subject, "/s", rate)
	return nil
}

// x509SVIDs asks for SVIDs of count entries from the first on.
func (n *joined) x509SVIDs(ctx context.Context, conn *grpc.ClientConn, first, count int) (int, error) {
	req := &svidv1.BatchNewX509SVIDRequest{}
	for i := range count {
		req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: n.entries[first+i], Csr: n.csrs[first+i]})
	}
	res, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, req)
	if err != nil {
		return 0, err
	}
	for _, r := range res.GetResults() {
		if codes.Code(r.GetStatus().GetCode()) != codes.OK {
			return 0, errors.New(r.GetStatus().GetMessage())
		}
	}
	return len(res.GetResults()), nil
}

// drive calls over a number of connections, one call at a time on each, and
// gives SVIDs per second and the sorted time of each call.
func (n *joined) drive(ctx context.Context, what string, length time.Duration, connections int, call func(context.Context, *grpc.ClientConn, int) (int, error)) (float64, []time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	took := make([][]time.Duration, connections)
	signed := make([]int, connections)
	errs := make([]error, connections)
	conns := make([]*grpc.ClientConn, connections)
	for c := range conns {
		var err error
		if conns[c], err = n.node.Dial(); err != nil {
			return 0, nil, err
		}
		defer conns[c].Close()
		if _, err := call(ctx, conns[c], c); err != nil { // handshake, warm
			return 0, nil, err
		}
	}
	before, err := n.cpu()
	if err != nil {
		return 0, nil, err
	}
	start := time.Now()
	var done sync.WaitGroup
	for c, conn := range conns {
		done.Go(func() {
			for i := c; time.Since(start) < length; i += connections {
				begin := time.Now()
				count, err := call(ctx, conn, i)
				if err != nil {
					errs[c] = err
					cancel()
					return
				}
				took[c] = append(took[c], time.Since(begin))
				signed[c] += count
			}
		})
	}
	done.Wait()
	elapsed := time.Since(start).Seconds()
	if err := errors.Join(errs...); err != nil {
		return 0, nil, err
	}
	total := 0
	for _, count := range signed {
		total += count
	}
	after, err := n.cpu()
	if err != nil {
		return 0, nil, err
	}
	// On a busy machine this can be compared, when rates cannot.
	n.say("    %s: %d µs of processor time each, client included", what, (after-before).Microseconds()/int64(max(1, total)))
	all := slices.Concat(took...)
	slices.Sort(all)
	return float64(total) / elapsed, all, nil
}

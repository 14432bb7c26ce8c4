package workload

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/peercred"
)

// bySelector gives the second identity only to those who have a selector.
type bySelector struct {
	*memory
	selector string
}

func (b bySelector) Hold(uint32, bool) Hold { return b }

func (b bySelector) Lookup(ctx context.Context, selectors []string) (Grant, <-chan struct{}, error) {
	g, changed, err := b.memory.Lookup(ctx, selectors)
	if !slices.Contains(selectors, b.selector) {
		g.Identities = g.Identities[:1]
	}
	return g, changed, err
}

// When more is asked for, an open stream finds out more, by the same checks; and
// a process that is no longer what it was gains nothing.
func TestAttestAgain(t *testing.T) {
	for _, tc := range []struct {
		name  string
		again []string
		err   error
		want  int // SVIDs; 0 is the end of the stream
	}{
		{"more is found", []string{"unix:uid:0", "unix:path:/a", "unix:sha256:00"}, nil, 2},
		{"runs another program", []string{"unix:uid:0", "unix:path:/b", "unix:sha256:00"}, nil, 1},
		{"is not the one that called", nil, errors.New("gone"), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ca := newAuthority(domain)
			source := newMemory(ca, ca.identity(1, "/a", ""), ca.identity(2, "/b", ""))
			var attested atomic.Int64
			_, socket := serve(t, bySelector{source, "unix:sha256:00"}, func(c *Config) {
				c.Attest = func(context.Context, peercred.Peer) ([]string, error) {
					if attested.Add(1) == 1 {
						return []string{"unix:uid:0", "unix:path:/a"}, nil
					}
					return tc.again, tc.err
				}
			})
			stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
			if err != nil {
				t.Fatal(err)
			}
			first, err := stream.Recv()
			if err != nil || len(first.Svids) != 1 {
				t.Fatalf("%v, %v", first, err)
			}
			// The other bundle makes sure that there is something to send.
			source.set(func(g *Grant) { g.Asked, g.Bundle = 1, newAuthority(domain).bundle })
			second, err := stream.Recv()
			if tc.want == 0 {
				if status.Code(err) != codes.PermissionDenied {
					t.Errorf("got %v, want PermissionDenied", err)
				}
				return
			}
			if err != nil || len(second.Svids) != tc.want {
				t.Errorf("got %d SVIDs, %v, want %d", len(second.GetSvids()), err, tc.want)
			}
			if n := attested.Load(); n != 2 {
				t.Errorf("attested %d times", n)
			}
		})
	}
}

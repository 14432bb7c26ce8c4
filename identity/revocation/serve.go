package revocation

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/revocationv1"
)

// Register serves a Set to whoever may connect. Streams end when stopping is
// closed.
func Register(r grpc.ServiceRegistrar, set *Set, stopping <-chan struct{}) {
	revocationv1.RegisterRevocationsServer(r, &server{set: set, stopping: stopping})
}

type server struct {
	revocationv1.UnimplementedRevocationsServer
	set      *Set
	stopping <-chan struct{}
}

// Watch implements revocationv1.RevocationsServer.
func (s *server) Watch(_ *revocationv1.WatchRequest, stream revocationv1.Revocations_WatchServer) error {
	// What was merged from another issuer may have any number, so that what is
	// new is told by comparison with what was sent.
	sent := map[string]*Revocation{}
	for {
		// Before the list: then what it holds is no older than that.
		news := s.set.news()
		list, _ := s.set.Now()
		currentAt := s.set.CurrentAt()
		var fresh []*Revocation
		for _, r := range list.All() {
			if sent[r.Key()] != r {
				fresh = append(fresh, r)
			}
		}
		for _, u := range Updates(fresh, list.Number(), currentAt) {
			if err := stream.Send(u); err != nil {
				return err
			}
		}
		sent = list.byKey
		select {
		case <-news:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the agent is stopping")
		}
	}
}

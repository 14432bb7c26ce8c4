package collect

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// stalled is the stream of a recorder that reads the greeting and nothing
// more. As with gRPC, what waits ends once the handler has returned.
type stalled struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan *auditv1.AppendRequest
	sent     int
	waits    chan struct{}
	returned chan struct{}
}

func (s *stalled) Context() context.Context { return s.ctx }

func (s *stalled) Recv() (*auditv1.AppendRequest, error) {
	select {
	case req := <-s.requests:
		return req, nil
	case <-s.returned:
		return nil, io.ErrUnexpectedEOF
	}
}

func (s *stalled) Send(*auditv1.AppendResponse) error {
	if s.sent++; s.sent == 1 {
		return nil
	}
	close(s.waits)
	<-s.returned
	return io.ErrClosedPipe
}

func TestRecorderThatDoesNotRead(t *testing.T) {
	for name, end := range map[string]func(s *Server, cancel context.CancelFunc){
		"the server stops":       func(s *Server, _ context.CancelFunc) { s.Close() },
		"its certificate is old": func(_ *Server, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
			s := NewServer(ServerConfig{
				Store: c.ledger, Grace: time.Millisecond,
				PeerID: func(context.Context) (spiffeid.ID, error) { return web, nil },
			})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			st := &stalled{ctx: ctx, requests: make(chan *auditv1.AppendRequest, 2), waits: make(chan struct{}), returned: make(chan struct{})}
			st.requests <- hello(1, web)
			st.requests <- request(batchOf(t, 1, 3, audit.ChainStart(audit.Stream{SPIFFEID: web.String(), Instance: instance}, 1)))
			result := make(chan error, 1)
			go func() {
				err := s.Append(st)
				close(st.returned)
				result <- err
			}()
			<-st.waits
			end(s, cancel)
			if err := <-result; err == nil {
				t.Error("no error")
			}
			s.Close()
			if n := c.ledger.Status().Events; n != 3 {
				t.Errorf("%d events, want 3", n)
			}
			c.stop()
		})
	}
}

// A connection that says nothing does not hold up a stop.
func TestSilentRecorder(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	s := NewServer(ServerConfig{Store: c.ledger, Grace: time.Hour, PeerID: func(context.Context) (spiffeid.ID, error) { return web, nil }})
	st := &stalled{ctx: context.Background(), requests: make(chan *auditv1.AppendRequest), returned: make(chan struct{})}
	result := make(chan error, 1)
	go func() {
		err := s.Append(st)
		close(st.returned)
		result <- err
	}()
	s.Close()
	if err := <-result; err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	c.stop()
}

package collect

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// Store is where records become durable: *ledger.Ledger. It is an interface so
// that a program that only ships does not link a ledger.
type Store interface {
	// Resume returns where a stream goes on.
	Resume(audit.Stream, *auditv1.Hello) (audit.Position, error)
	// Append commits a batch and then calls done, in the order of the calls.
	Append(b *audit.Batch, done func(error))
	// Seen notes how far a recorder says it has come.
	Seen(s audit.Stream, committed uint64)
}

// maxInFlight bounds the batches of one connection that await the disk.
const maxInFlight = 32

// ServerConfig is what the collector's service needs.
type ServerConfig struct {
	Store Store
	// PeerID is the SPIFFE ID that the caller proved by mTLS. It writes as
	// nobody else.
	PeerID func(context.Context) (spiffeid.ID, error)
	// Stored, where set, is told of each batch once it is durable, in the order
	// of its stream. It must not wait: the next commit does. It may keep the
	// records.
	Stored func(*audit.Batch)
	// Grace is how long Close waits for a recorder that does not read what is
	// acknowledged; 5 s when 0.
	Grace time.Duration
	Log   *slog.Logger
}

// Server serves auditv1.Ingest.
type Server struct {
	auditv1.UnimplementedIngestServer
	cfg     ServerConfig
	checker *audit.Checker
	stop    chan struct{}
	// ended is done when the grace of Close is over.
	ended     context.Context
	end       context.CancelFunc
	receivers sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// NewServer returns the service.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Grace == 0 {
		cfg.Grace = 5 * time.Second
	}
	s := &Server{cfg: cfg, checker: audit.NewChecker(), stop: make(chan struct{})}
	s.ended, s.end = context.WithCancel(context.Background())
	return s
}

// ingest is one connection.
type ingest struct {
	store  Store
	stream ingestStream
	name   audit.Stream
	// at is the last record received, durable or on its way.
	at      audit.Position
	checker *audit.Checker
	stored  func(*audit.Batch)
	slots   chan struct{}

	mu sync.Mutex
	// durable is the last position committed, err why it goes no further.
	durable audit.Position
	err     error
	changed chan struct{}
}

type ingestStream = grpc.BidiStreamingServer[auditv1.AppendRequest, auditv1.AppendResponse]

// Append implements auditv1.IngestServer. It returns when the stream's context
// ends even where the transport does not know of that, and even while a send
// waits for a recorder that does not read: both end with the handler.
func (s *Server) Append(stream ingestStream) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	result, greeted := make(chan error, 1), make(chan struct{})
	if !s.start(func() { result <- s.serve(ctx, stream, greeted) }) {
		return s.wire(audit.Stream{}, audit.ErrClosed)
	}
	// Before the greeting there is nothing to acknowledge.
	idle := s.stop
	for {
		select {
		case err := <-result:
			return err
		case <-greeted:
			greeted, idle = nil, nil
		case <-idle:
			select {
			case <-greeted:
				greeted, idle = nil, nil
			default:
				return s.wire(audit.Stream{}, audit.ErrClosed)
			}
		case <-s.ended.Done():
			return s.wire(audit.Stream{}, audit.ErrClosed)
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// serve is the handler: it greets, and acknowledges what is stored.
func (s *Server) serve(ctx context.Context, stream ingestStream, greeted chan<- struct{}) error {
	c, err := s.greet(stream)
	if err != nil {
		return s.wire(c.name, err)
	}
	close(greeted)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	received := make(chan error, 1)
	if !s.start(func() { received <- c.receive(ctx) }) {
		return s.wire(c.name, audit.ErrClosed)
	}
	for {
		select {
		case <-c.changed:
			err = c.acknowledge()
		case err = <-received:
			err = cmp.Or(c.drain(), err, io.EOF)
		case <-s.stop:
			err = cmp.Or(c.drain(), error(audit.ErrClosed))
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return s.wire(c.name, err)
		}
	}
}

// start runs f, unless the server is closing. f outlives the handler by a
// moment: what it waits for ends when the handler returns.
func (s *Server) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.receivers.Go(f)
	return true
}

// Close ends every connection once what it sent is durable and acknowledged,
// and waits for that, for a recorder that does not read no longer than
// ServerConfig.Grace. The recorders try again elsewhere, or later.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	grace := time.AfterFunc(s.cfg.Grace, s.end)
	defer grace.Stop()
	s.receivers.Wait()
}

// greet takes the hello and answers with the position to begin at.
func (s *Server) greet(stream ingestStream) (*ingest, error) {
	c := &ingest{store: s.cfg.Store, checker: s.checker, stored: s.cfg.Stored, stream: stream, slots: make(chan struct{}, maxInFlight), changed: make(chan struct{}, 1)}
	id, err := s.cfg.PeerID(stream.Context())
	if err != nil {
		s.cfg.Log.Warn("audit records refused: caller has no identity", "error", err)
		return c, status.Error(codes.Unauthenticated, "no verified SPIFFE ID")
	}
	req, err := stream.Recv()
	if err != nil {
		return c, err
	}
	hello := req.GetHello()
	if hello == nil {
		return c, status.Error(codes.InvalidArgument, "the first message must be a hello")
	}
	if c.name, err = audit.NewStream(id.String(), hello.Instance); err != nil {
		return c, status.Error(codes.InvalidArgument, err.Error())
	}
	if c.at, err = s.cfg.Store.Resume(c.name, hello); err != nil {
		return c, err
	}
	c.durable = c.at
	s.cfg.Store.Seen(c.name, hello.Last)
	return c, stream.Send(response(c.at))
}

func response(p audit.Position) *auditv1.AppendResponse {
	return &auditv1.AppendResponse{Epoch: p.Epoch, Sequence: p.Sequence, Chain: p.Chain[:]}
}

// receive checks batches and hands them to the store.
func (c *ingest) receive(ctx context.Context) error {
	for {
		req, err := c.stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind := req.Kind.(type) {
		case *auditv1.AppendRequest_Batch:
			if err := c.batch(ctx, kind.Batch); err != nil {
				return err
			}
		case *auditv1.AppendRequest_Heartbeat:
			c.store.Seen(c.name, kind.Heartbeat.GetLast())
		default:
			return status.Error(codes.InvalidArgument, "want a batch or a heartbeat")
		}
	}
}

// batch checks what a recorder sent and hands on what is new of it.
func (c *ingest) batch(ctx context.Context, m *auditv1.Batch) error {
	n := uint64(len(m.GetRecords()))
	if n == 0 || m.First == 0 || len(m.Chain) != len(audit.Hash{}) {
		return status.Error(codes.InvalidArgument, "malformed batch")
	}
	if m.First > c.at.Sequence+1 {
		return status.Errorf(codes.FailedPrecondition, "batch begins at sequence %d, %d is due", m.First, c.at.Sequence+1)
	}
	// What was received before is received again after a broken connection.
	known := min(c.at.Sequence+1-m.First, n)
	if known == n {
		c.notify()
		return nil
	}
	b := &audit.Batch{Stream: c.name, Epoch: c.at.Epoch, First: c.at.Sequence + 1, Records: m.Records[known:]}
	for i, r := range b.Records {
		// Everyone after will have to read it.
		if err := c.checker.Check(r.Event, b.First+uint64(i)); err != nil {
			return status.Errorf(codes.InvalidArgument, "record %d: %v", b.First+uint64(i), err)
		}
	}
	if err := b.Hash(c.at.Chain); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if b.Last != audit.Hash(m.Chain) {
		return status.Errorf(codes.DataLoss, "the chain after sequence %d is not the one sent", m.First+n-1)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.at.Sequence, c.at.Chain = m.First+n-1, b.Last
	at := c.at
	c.store.Append(b, func(err error) {
		if err == nil && c.stored != nil {
			c.stored(b)
		}
		c.committed(at, err)
	})
	return nil
}

// committed is called by the store, in order.
func (c *ingest) committed(at audit.Position, err error) {
	c.mu.Lock()
	if c.err == nil {
		if c.err = err; err == nil {
			c.durable = at
		}
	}
	c.mu.Unlock()
	c.notify()
	<-c.slots
}

func (c *ingest) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// acknowledge tells the recorder what is durable. It returns why the store
// refused more, if it did.
func (c *ingest) acknowledge() error {
	c.mu.Lock()
	at, err := c.durable, c.err
	c.mu.Unlock()
	if sendErr := c.stream.Send(response(at)); sendErr != nil && err == nil {
		return sendErr
	}
	return err
}

// drain waits for what is on its way to the disk, and acknowledges it.
func (c *ingest) drain() error {
	for range maxInFlight {
		c.slots <- struct{}{}
	}
	return c.acknowledge()
}

// wire logs why a connection ended and says on the wire what the recorder may
// know.
func (s *Server) wire(name audit.Stream, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return err
	}
	log := s.cfg.Log.With("stream", name.String(), "error", err)
	switch {
	case errors.Is(err, audit.ErrFull):
		log.Error("audit records refused: ledger is full")
		return status.Error(codes.ResourceExhausted, "the ledger is full")
	case errors.Is(err, audit.ErrClosed):
		return status.Error(codes.Unavailable, "the collector is stopping")
	}
	code := status.Code(err)
	if err == io.EOF || code == codes.Unavailable {
		// The recorder stopped, or its connection did; it will be back.
		log.Info("audit connection ended")
		return status.Error(codes.Unavailable, "the connection ended")
	}
	if code != codes.Unknown {
		log.Warn("audit connection ended")
		return err
	}
	log.Error("audit records refused")
	return status.Error(codes.Unavailable, "the collector cannot store records now")
}

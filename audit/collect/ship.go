package collect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/spool"
)

// Bounds of a batch, and of the waits between attempts.
const (
	batchRecords = 1024
	batchBytes   = 256 << 10
	backoffMin   = 50 * time.Millisecond
	backoffMax   = 10 * time.Second
)

// Config is what Ship needs.
type Config struct {
	// Conn leads to the collector, by mTLS with the spool's SPIFFE ID.
	Conn  grpc.ClientConnInterface
	Spool *spool.Spool
	// Heartbeat is the time between two heartbeats; 10 s when 0.
	Heartbeat time.Duration
	// Flush is how long Ship goes on after its context ends, to deliver what
	// is committed; 2 s when 0.
	Flush time.Duration
	Log   *slog.Logger
}

// Ship delivers what the spool commits until ctx ends, then what is left, for
// at most Config.Flush. It reconnects with a growing, jittered wait. It returns
// nil when everything was acknowledged, and otherwise an error that says how
// much the spool still holds; that is delivered by the next process.
func Ship(ctx context.Context, cfg Config) error {
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 10 * time.Second
	}
	if cfg.Flush == 0 {
		cfg.Flush = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// Work ends later than ctx does, by the time that the flush gets.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	flush := time.AfterFunc(time.Duration(1<<63-1), cancel)
	defer flush.Stop()
	stop := context.AfterFunc(ctx, func() { flush.Reset(cfg.Flush) })
	defer stop()

	wait := backoffMin
	for work.Err() == nil {
		s := &session{cfg: cfg, stopping: ctx, log: cfg.Log}
		err := s.run(work)
		if errors.Is(err, audit.ErrClosed) {
			return fmt.Errorf("ship audit records: %w", err)
		}
		if ctx.Err() != nil && cfg.Spool.Status().Pending == 0 {
			return nil
		}
		if s.progress {
			wait = backoffMin
		}
		if err == nil {
			continue
		}
		cfg.Log.Warn("audit records wait for the collector", "error", err, "pending", cfg.Spool.Status().Pending)
		pause(work, ctx, wait/2+rand.N(wait/2))
		wait = min(2*wait, backoffMax)
	}
	if n := cfg.Spool.Status().Pending; n > 0 {
		return fmt.Errorf("ship audit records: %d are kept in the spool", n)
	}
	return nil
}

// pause waits, but not once the program is stopping: then there is no time.
func pause(work, stopping context.Context, d time.Duration) {
	if stopping.Err() != nil {
		d = min(d, backoffMin)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	ended := stopping.Done()
	if stopping.Err() != nil {
		ended = nil
	}
	select {
	case <-t.C:
	case <-ended:
	case <-work.Done():
	}
}

// session is one connection, which delivers one epoch.
type session struct {
	cfg      Config
	stopping context.Context
	log      *slog.Logger
	// progress: the collector acknowledged something or took the hello.
	progress bool
}

type appendStream = grpc.BidiStreamingClient[auditv1.AppendRequest, auditv1.AppendResponse]

// run returns nil when the epoch is delivered, or the program stops and
// nothing is left.
func (s *session) run(work context.Context) error {
	ctx, cancel := context.WithCancel(work)
	defer cancel()
	stream, err := auditv1.NewIngestClient(s.cfg.Conn).Append(ctx)
	if err != nil {
		return fmt.Errorf("connect to collector: %w", err)
	}
	r, err := s.greet(stream)
	if err != nil || r == nil {
		return err
	}
	s.progress = true

	acks := make(chan audit.Position, 1)
	var recvErr error
	go func() {
		defer close(acks)
		recvErr = s.receive(stream, acks)
		cancel()
	}()
	err = s.send(ctx, stream, r, acks)
	cancel()
	for range acks {
	}
	if recvErr != nil && (err == nil || errors.Is(err, context.Canceled)) && work.Err() == nil && !errors.Is(recvErr, context.Canceled) {
		err = recvErr
	}
	return err
}

// greet agrees with the collector on where to begin. A nil reader means that
// another connection has to begin afresh.
func (s *session) greet(stream appendStream) (*spool.Reader, error) {
	r, err := s.cfg.Spool.Reader(0)
	if errors.Is(err, spool.ErrConflict) {
		return nil, s.abandon(audit.Position{Epoch: s.cfg.Spool.Status().Epoch}, err)
	}
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, errors.New("the spool has no segment")
	}
	hello := r.Hello()
	p, err := hear(stream, hello)
	if err != nil {
		return nil, err
	}
	if p.Epoch > r.Position().Epoch {
		// What is held of earlier epochs was delivered before.
		if r, err = s.cfg.Spool.Reader(p.Epoch); err != nil {
			return nil, err
		}
		if r == nil || r.Position().Epoch != p.Epoch {
			if r == nil {
				return nil, s.abandon(p, errors.New("the collector is in a later epoch"))
			}
			s.cfg.Spool.Acknowledge(p)
			return nil, nil
		}
	}
	switch err := r.Seek(p); {
	case errors.Is(err, spool.ErrConflict):
		return nil, s.abandon(p, err)
	case err != nil:
		return nil, err
	}
	s.cfg.Spool.Acknowledge(p)
	return r, nil
}

func (s *session) abandon(p audit.Position, cause error) error {
	s.log.Error("audit spool and collector disagree", "error", cause)
	return s.cfg.Spool.Abandon(p)
}

func hear(stream appendStream, hello *auditv1.Hello) (audit.Position, error) {
	// An error of Send is io.EOF; Recv has the reason.
	_ = stream.Send(&auditv1.AppendRequest{Kind: &auditv1.AppendRequest_Hello{Hello: hello}})
	resp, err := stream.Recv()
	if err != nil {
		return audit.Position{}, fmt.Errorf("greet collector: %w", err)
	}
	return positionOf(resp)
}

func positionOf(resp *auditv1.AppendResponse) (audit.Position, error) {
	if len(resp.Chain) != len(audit.Hash{}) {
		return audit.Position{}, fmt.Errorf("collector answered a chain of %d bytes", len(resp.Chain))
	}
	return audit.Position{Epoch: resp.Epoch, Sequence: resp.Sequence, Chain: audit.Hash(resp.Chain)}, nil
}

// receive frees what is acknowledged, and passes on the newest position.
func (s *session) receive(stream appendStream, acks chan audit.Position) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("collector: %w", err)
		}
		p, err := positionOf(resp)
		if err != nil {
			return err
		}
		s.cfg.Spool.Acknowledge(p)
		select {
		case <-acks:
		default:
		}
		acks <- p
	}
}

// send delivers batches and heartbeats until the epoch is done, or the program
// stops and everything is acknowledged.
func (s *session) send(ctx context.Context, stream appendStream, r *spool.Reader, acks <-chan audit.Position) error {
	beat, announced := time.Now(), uint64(0)
	for {
		// What is committed is said before the rest of it is delivered: a flush
		// that is cut short must not look like all there was.
		if s.stopping.Err() != nil {
			if last := r.Hello().Last; last > announced {
				announced = last
				if err := heartbeat(stream, r); err != nil {
					return err
				}
			}
		}
		b, err := r.Next(batchRecords, batchBytes)
		if err != nil {
			if errors.Is(err, spool.ErrConflict) {
				return s.abandon(r.Position(), err)
			}
			return err
		}
		if b != nil {
			msg := &auditv1.Batch{First: b.First, Records: b.Records, Chain: b.Last[:]}
			if err := stream.Send(&auditv1.AppendRequest{Kind: &auditv1.AppendRequest_Batch{Batch: msg}}); err != nil {
				return fmt.Errorf("send to collector: %w", err)
			}
			continue
		}
		if r.Done() || s.stopping.Err() != nil {
			return s.drain(ctx, r, acks)
		}
		if left := s.cfg.Heartbeat - time.Since(beat); left > 0 {
			if err := s.wait(ctx, r, left); err != nil {
				return err
			}
			continue
		}
		beat = time.Now()
		if err := heartbeat(stream, r); err != nil {
			return err
		}
	}
}

// heartbeat tells how much is committed, sent or not.
func heartbeat(stream appendStream, r *spool.Reader) error {
	h := &auditv1.Heartbeat{Last: r.Hello().Last, Time: time.Now().UnixNano()}
	if err := stream.Send(&auditv1.AppendRequest{Kind: &auditv1.AppendRequest_Heartbeat{Heartbeat: h}}); err != nil {
		return fmt.Errorf("send to collector: %w", err)
	}
	return nil
}

// wait returns when there is something to do.
func (s *session) wait(ctx context.Context, r *spool.Reader, d time.Duration) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.stopping, cancel)
	defer stop()
	if _, err := r.Wait(waiting, d); err != nil && ctx.Err() == nil && s.stopping.Err() == nil {
		return err
	}
	return ctx.Err()
}

// drain waits until what was read is acknowledged.
func (s *session) drain(ctx context.Context, r *spool.Reader, acks <-chan audit.Position) error {
	for s.cfg.Spool.Acknowledged(r.Position()) < r.Position().Sequence {
		select {
		case _, ok := <-acks:
			if !ok {
				return context.Canceled
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.Done() {
		s.cfg.Spool.Acknowledge(audit.Position{Epoch: r.Position().Epoch + 1})
	}
	return nil
}

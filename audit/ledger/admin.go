package ledger

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// archiveChunk is the size of a message of Archive in bytes.
const archiveChunk = 256 << 10

// AdminConfig is what the admin service needs.
type AdminConfig struct {
	Ledger *Ledger
	// Recorder records each call before it is answered; a call that cannot be
	// recorded is refused.
	Recorder audit.Recorder
	// Actor names the caller: unix:uid:<n>.
	Actor func(context.Context) (string, error)
	Log   *slog.Logger
}

// Admin serves auditv1.Admin.
type Admin struct {
	auditv1.UnimplementedAdminServer
	cfg AdminConfig
}

// NewAdmin returns the service.
func NewAdmin(cfg AdminConfig) *Admin {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Admin{cfg: cfg}
}

// record puts the call on record (PCI DSS 10.2.1.3: access to audit logs).
func (a *Admin) record(ctx context.Context, what string, details ...*auditv1.Field) error {
	actor, err := a.cfg.Actor(ctx)
	if err != nil {
		a.cfg.Log.Warn("audit read refused: caller is not known", "error", err)
		return status.Error(codes.Unauthenticated, "caller is not known")
	}
	ev := audit.Event{
		Kind: auditv1.Kind_KIND_ADMIN, Time: a.cfg.Ledger.cfg.Clock(), Outcome: auditv1.Outcome_OUTCOME_SUCCESS,
		Action: &auditv1.Action{Verb: "read", Actor: actor, Object: "audit", ObjectId: what, Details: details},
	}
	if _, err := a.cfg.Recorder.Record(&ev); err != nil {
		return a.wire("audit read refused: it cannot be recorded", err)
	}
	return nil
}

// wire logs what happened and says on the wire what the caller may know; who
// reads the record may know all of it.
func (a *Admin) wire(what string, err error) error {
	if status.Code(err) != codes.Unknown {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, audit.ErrClosed):
		return status.Error(codes.Unavailable, "ledger is closed")
	}
	a.cfg.Log.Error(what, "error", err)
	if errors.Is(err, ErrDamaged) {
		return status.Errorf(codes.DataLoss, "%s: %v", what, err)
	}
	return status.Errorf(codes.Internal, "%s: %v", what, err)
}

// Query implements auditv1.AdminServer.
func (a *Admin) Query(req *auditv1.QueryRequest, stream grpc.ServerStreamingServer[auditv1.StoredRecord]) error {
	if err := a.record(stream.Context(), "query", filterDetails(req.GetFilter())...); err != nil {
		return err
	}
	if err := a.cfg.Ledger.Query(stream.Context(), req.GetFilter(), req.GetLimit(), stream.Send); err != nil {
		return a.wire("query", err)
	}
	return nil
}

// maxBacklog bounds what Tail begins with.
const maxBacklog = 10_000

// Tail implements auditv1.AdminServer.
func (a *Admin) Tail(req *auditv1.TailRequest, stream grpc.ServerStreamingServer[auditv1.TailResponse]) error {
	if req.GetBacklog() > maxBacklog {
		return status.Errorf(codes.InvalidArgument, "backlog %d: at most %d", req.GetBacklog(), maxBacklog)
	}
	if err := a.record(stream.Context(), "tail", filterDetails(req.GetFilter())...); err != nil {
		return err
	}
	err := a.cfg.Ledger.Tail(stream.Context(), req,
		func() error { return stream.Send(&auditv1.TailResponse{}) },
		func(r *auditv1.StoredRecord) error { return stream.Send(&auditv1.TailResponse{Record: r}) })
	if err != nil {
		return a.wire("tail", err)
	}
	return nil
}

// Archive implements auditv1.AdminServer.
func (a *Admin) Archive(_ *auditv1.ArchiveRequest, stream grpc.ServerStreamingServer[auditv1.ArchiveChunk]) error {
	if err := a.record(stream.Context(), "archive"); err != nil {
		return err
	}
	w := bufio.NewWriterSize(chunks{stream}, archiveChunk)
	if err := a.cfg.Ledger.Archive(stream.Context(), w); err != nil {
		return a.wire("archive", err)
	}
	if err := w.Flush(); err != nil {
		return a.wire("archive", err)
	}
	return nil
}

type chunks struct {
	stream grpc.ServerStreamingServer[auditv1.ArchiveChunk]
}

func (c chunks) Write(b []byte) (int, error) {
	// The message may be looked at after Send, the buffer is written again.
	if err := c.stream.Send(&auditv1.ArchiveChunk{Data: bytes.Clone(b)}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Status implements auditv1.AdminServer.
func (a *Admin) Status(ctx context.Context, _ *auditv1.AuditStatusRequest) (*auditv1.AuditStatusResponse, error) {
	if err := a.record(ctx, "status"); err != nil {
		return nil, err
	}
	return a.cfg.Ledger.Status(), nil
}

func filterDetails(f *auditv1.Filter) []*auditv1.Field {
	var out []*auditv1.Field
	add := func(name string, values ...string) {
		if len(values) > 0 && values[0] != "" {
			out = append(out, &auditv1.Field{Name: name, Values: values})
		}
	}
	at := func(name string, ns int64) {
		if ns != 0 {
			add(name, time.Unix(0, ns).UTC().Format(time.RFC3339Nano))
		}
	}
	at("from", f.GetFrom())
	at("to", f.GetTo())
	for _, k := range f.GetKinds() {
		add("kind", strings.ToLower(strings.TrimPrefix(k.String(), "KIND_")))
	}
	for _, o := range f.GetOutcomes() {
		add("outcome", strings.ToLower(strings.TrimPrefix(o.String(), "OUTCOME_")))
	}
	add("source", f.GetSource())
	add("destination", f.GetDestination())
	add("decision_id", f.GetDecisionId())
	add("path_prefix", f.GetPathPrefix())
	return out
}

package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/tracing"
)

const (
	// maxSVIDs bounds one batch of X509-SVIDs.
	maxSVIDs = 500
	// maxAudience bounds a JWT-SVID: number of audiences, and bytes of each.
	maxAudience       = 64
	maxAudienceLength = 2048
)

// svidService is spire.api.server.svid.v1.SVID. Minting is in mint.go.
type svidService struct {
	*Issuer
	svidv1.UnimplementedSVIDServer
}

// BatchNewX509SVID implements svidv1.SVIDServer. What is to be signed is put on
// record together, each SVID as an act of its own, before the first is signed.
func (s *svidService) BatchNewX509SVID(ctx context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	params := req.GetParams()
	switch {
	case len(params) == 0:
		return nil, status.Error(codes.InvalidArgument, "params is empty")
	case len(params) > maxSVIDs:
		return nil, status.Errorf(codes.InvalidArgument, "batch has %d items, at most %d are accepted", len(params), maxSVIDs)
	}
	if err := s.waitToSign(ctx, len(params)); err != nil {
		return nil, err
	}
	if err := s.refreshFor(ctx, params); err != nil {
		return nil, err
	}
	batch := &x509Batch{params: params, tickets: make([]*ca.X509Ticket, len(params)), entries: make([]*registry.Entry, len(params)),
		results: make([]*svidv1.BatchNewX509SVIDResponse_Result, len(params))}
	if err := s.onAllCores(ctx, len(params), func(n int) error { return s.prepareX509(ctx, batch, n) }); err != nil {
		return nil, err
	}
	acts := make([]identity.Act, 0, len(params))
	for n, ticket := range batch.tickets {
		if ticket != nil {
			acts = append(acts, svidAct("issued", "x509-svid", batch.entries[n].SPIFFEID, ticket.ExpiresAt(),
				[2]string{"entry", batch.entries[n].ID}, [2]string{"serial", ticket.Serial()}))
		}
	}
	if err := s.recordAll(ctx, acts); err != nil {
		return nil, err
	}
	if err := s.signAll(ctx, batch); err != nil {
		return nil, err
	}
	return &svidv1.BatchNewX509SVIDResponse{Results: batch.results}, nil
}

// x509Batch is a batch on its way: an item is refused, which makes a result, or
// gets a ticket for its entry, which is put on record and then signed.
type x509Batch struct {
	params  []*svidv1.NewX509SVIDParams
	entries []*registry.Entry
	tickets []*ca.X509Ticket
	results []*svidv1.BatchNewX509SVIDResponse_Result
}

// onAllCores does the items of a batch, several at a time. The first error ends
// it, and so does the end of ctx.
func (s *svidService) onAllCores(ctx context.Context, items int, do func(n int) error) error {
	var failed atomic.Pointer[error]
	var next atomic.Int64
	work := func() {
		for failed.Load() == nil && ctx.Err() == nil {
			n := int(next.Add(1)) - 1
			if n >= items {
				return
			}
			if err := do(n); err != nil {
				failed.CompareAndSwap(nil, &err)
				return
			}
		}
	}
	var others sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), items) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return nil
}

// prepareX509 checks an item and draws its serial number. An error fails the
// whole batch.
func (s *svidService) prepareX509(ctx context.Context, b *x509Batch, n int) error {
	p := b.params[n]
	refuse := func(code codes.Code, message string) error {
		b.results[n] = &svidv1.BatchNewX509SVIDResponse_Result{Status: &types.Status{Code: int32(code), Message: message}}
		return nil
	}
	if p.GetEntryId() == "" {
		return refuse(codes.InvalidArgument, "entry_id is missing")
	}
	e := s.index.Lookup(callerOf(ctx).id, p.GetEntryId(), s.now())
	if e == nil {
		return refuse(codes.NotFound, "entry not found, or not authorized for this agent")
	}
	csr, err := parseCSRFor(p.GetCsr(), e.SPIFFEID)
	if err != nil {
		return refuse(codes.InvalidArgument, err.Error())
	}
	through := callerOf(ctx).id
	notBefore, err := s.notBefore(e.SPIFFEID, through)
	if err != nil {
		return err
	}
	ticket, err := s.ca.PrepareX509(ca.X509Request{
		ID: e.SPIFFEID, PublicKey: csr.PublicKey, Life: e.X509SVIDTTL, DNSNames: e.DNSNames, Through: through, NotBefore: notBefore,
	})
	if err != nil {
		st := status.Convert(s.unsigned(ctx, err))
		return refuse(st.Code(), st.Message())
	}
	b.entries[n], b.tickets[n] = e, ticket
	return nil
}

// signAll signs what is on record. An error fails the whole batch.
func (s *svidService) signAll(ctx context.Context, b *x509Batch) (err error) {
	ctx, span := tracing.Start(ctx, "sign X509-SVIDs")
	defer func() { span.End(err) }()
	if span.Recorded() {
		granted := slices.DeleteFunc(slices.Clone(b.entries), func(e *registry.Entry) bool { return e == nil })
		span.Int(tracing.Count, len(granted))
		span.Int(tracing.Refused, len(b.entries)-len(granted))
		tracing.List(span, tracing.EntryIDs, granted, func(e *registry.Entry) string { return e.ID })
		tracing.List(span, tracing.SPIFFEIDs, granted, func(e *registry.Entry) string { return e.SPIFFEID.String() })
	}
	return s.onAllCores(ctx, len(b.params), func(n int) error { return s.signX509(ctx, b, n) })
}

// signX509 signs an item that is on record. An error fails the whole batch.
func (s *svidService) signX509(ctx context.Context, b *x509Batch, n int) error {
	if b.tickets[n] == nil {
		return nil // refused
	}
	svid, err := s.issued(b.tickets[n], b.entries[n].SPIFFEID)
	if err != nil {
		return s.internal(ctx, "sign an X509-SVID", err)
	}
	svid.Hint = b.entries[n].Hint
	b.results[n] = &svidv1.BatchNewX509SVIDResponse_Result{Status: itemStatus(codes.OK, nil), Svid: svid}
	return nil
}

// issueX509 signs a single SVID that is on record.
func (i *Issuer) issueX509(ctx context.Context, ticket *ca.X509Ticket, id spiffeid.ID) (svid *types.X509SVID, err error) {
	_, span := tracing.Start(ctx, "sign X509-SVID")
	defer func() { span.End(err) }()
	if span.Recorded() {
		span.String(tracing.SPIFFEID, id.String())
	}
	return i.issued(ticket, id)
}

func (i *Issuer) issued(ticket *ca.X509Ticket, id spiffeid.ID) (*types.X509SVID, error) {
	chain, err := i.ca.IssueX509(ticket)
	if err != nil {
		return nil, err
	}
	return &types.X509SVID{CertChain: chain, Id: idToProto(id), ExpiresAt: ticket.ExpiresAt().Unix()}, nil
}

// NewJWTSVID implements svidv1.SVIDServer.
func (s *svidService) NewJWTSVID(ctx context.Context, req *svidv1.NewJWTSVIDRequest) (*svidv1.NewJWTSVIDResponse, error) {
	if req.GetEntryId() == "" {
		return nil, status.Error(codes.InvalidArgument, "entry_id is missing")
	}
	e, err := s.lookup(ctx, req.GetEntryId())
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found, or not authorized for this agent")
	}
	tracing.Current(ctx).String(tracing.EntryID, e.ID)
	if err := s.waitToSign(ctx, 1); err != nil {
		return nil, err
	}
	svid, err := s.newJWT(ctx, "issued", ca.JWTRequest{ID: e.SPIFFEID, Audience: req.GetAudience(), Life: e.JWTSVIDTTL, Through: callerOf(ctx).id}, [2]string{"entry", e.ID})
	if err != nil {
		return nil, err
	}
	svid.Hint = e.Hint
	return &svidv1.NewJWTSVIDResponse{Svid: svid}, nil
}

func (s *svidService) newJWT(ctx context.Context, verb string, r ca.JWTRequest, details ...[2]string) (*types.JWTSVID, error) {
	if len(r.Audience) > maxAudience {
		return nil, status.Errorf(codes.InvalidArgument, "audience has %d members, at most %d are accepted", len(r.Audience), maxAudience)
	}
	for n, a := range r.Audience {
		if len(a) > maxAudienceLength {
			return nil, status.Errorf(codes.InvalidArgument, "audience[%d] has %d bytes, at most %d are accepted", n, len(a), maxAudienceLength)
		}
	}
	var err error
	if r.NotBefore, err = s.notBefore(r.ID, r.Through); err != nil {
		return nil, err
	}
	ticket, err := s.ca.PrepareJWT(r)
	if err != nil {
		return nil, s.unsigned(ctx, err)
	}
	details = append(append(details, [2]string{"serial", ticket.ID()}), audienceDetails(r.Audience)...)
	if err := s.record(ctx, svidAct(verb, "jwt-svid", r.ID, ticket.ExpiresAt(), details...)); err != nil {
		return nil, err
	}
	_, span := tracing.Start(ctx, "sign JWT-SVID")
	if span.Recorded() {
		span.String(tracing.SPIFFEID, r.ID.String())
	}
	token, err := s.ca.IssueJWT(ticket)
	span.End(err)
	if err != nil {
		return nil, s.internal(ctx, "sign a JWT-SVID", err)
	}
	return &types.JWTSVID{Token: token, Id: idToProto(r.ID), ExpiresAt: ticket.ExpiresAt().Unix(), IssuedAt: ticket.IssuedAt().Unix()}, nil
}

// maxAudienceRecorded is how many bytes of audiences are put on record as they
// are. Workloads choose them, and the record must not grow as they please.
const maxAudienceRecorded = 256

// audienceDetails is the audiences, or of a long list the number and a digest:
// the first half of the SHA-256 of the list as compact JSON.
func audienceDetails(audience []string) (details [][2]string) {
	total := 0
	for _, a := range audience {
		total += len(a)
		details = append(details, [2]string{"audience", a})
	}
	if total <= maxAudienceRecorded {
		return details
	}
	var list bytes.Buffer
	enc := json.NewEncoder(&list)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(audience) // strings can be encoded, and a Buffer takes everything
	sum := sha256.Sum256(bytes.TrimSuffix(list.Bytes(), []byte("\n")))
	return [][2]string{{"audiences", strconv.Itoa(len(audience))}, {"audience_sha256", hex.EncodeToString(sum[:len(sum)/2])}}
}

// lifeFromProto reads a wished-for life; 0 is the default.
func lifeFromProto(sec int32) (time.Duration, error) {
	life, err := ttlFromProto(sec)
	if err != nil {
		return 0, status.Errorf(codes.InvalidArgument, "ttl: %v", err)
	}
	return life, nil
}

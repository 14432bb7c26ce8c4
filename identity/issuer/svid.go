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

// BatchNewX509SVID implements svidv1.SVIDServer.
func (s *svidService) BatchNewX509SVID(ctx context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	params := req.GetParams()
	leave, err := s.admitBatch(ctx, "params", len(params))
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := s.refreshFor(ctx, params); err != nil {
		return nil, err
	}
	entries := make([]*registry.Entry, len(params))
	batch, err := s.signX509(ctx, len(params), func(n int) (wanted, error) {
		p := params[n]
		if p.GetEntryId() == "" {
			return wanted{}, status.Error(codes.InvalidArgument, "entry_id is missing")
		}
		e := s.index.Lookup(callerOf(ctx).id, p.GetEntryId(), s.now())
		if e == nil {
			return wanted{}, status.Error(codes.NotFound, "entry not found, or not authorized for this agent")
		}
		entries[n] = e
		return wanted{id: e.SPIFFEID, csr: p.GetCsr(), life: e.X509SVIDTTL, dnsNames: e.DNSNames, right: [2]string{"entry", e.ID}}, nil
	})
	if err != nil {
		return nil, err
	}
	resp := &svidv1.BatchNewX509SVIDResponse{Results: make([]*svidv1.BatchNewX509SVIDResponse_Result, len(params))}
	for n, item := range batch {
		if item.refused != nil {
			resp.Results[n] = &svidv1.BatchNewX509SVIDResponse_Result{Status: &types.Status{Code: int32(item.refused.Code()), Message: item.refused.Message()}}
			continue
		}
		item.svid.Hint = entries[n].Hint
		resp.Results[n] = &svidv1.BatchNewX509SVIDResponse_Result{Status: itemStatus(codes.OK, nil), Svid: item.svid}
	}
	return resp, nil
}

// admitBatch waits until a batch of X509-SVIDs may be signed. leave follows.
func (i *Issuer) admitBatch(ctx context.Context, field string, items int) (leave func(), err error) {
	switch {
	case items == 0:
		return nil, status.Errorf(codes.InvalidArgument, "%s is empty", field)
	case items > maxSVIDs:
		return nil, status.Errorf(codes.InvalidArgument, "batch has %d items, at most %d are accepted", items, maxSVIDs)
	}
	if err := i.waitToSign(ctx, items); err != nil {
		return nil, err
	}
	return i.enterSigning(ctx, items, i.ca.X509SVIDLife()/2)
}

// wanted is an X509-SVID that the caller may have.
type wanted struct {
	id       spiffeid.ID
	csr      []byte
	life     time.Duration
	dnsNames []string
	// right is a detail of the act: by what it is the caller's. More come after the
	// serial number.
	right [2]string
	more  [][2]string
}

// batched is an item of a batch on its way: it is refused, or gets a ticket, is
// put on record and then signed.
type batched struct {
	refused *status.Status
	want    wanted
	ticket  *ca.X509Ticket
	svid    *types.X509SVID
}

// signX509 signs a batch. What is to be signed is put on record together, each SVID
// as an act of its own, before the first is signed. An error of want, which is for
// the wire, refuses its item.
func (i *Issuer) signX509(ctx context.Context, items int, want func(n int) (wanted, error)) ([]batched, error) {
	batch := make([]batched, items)
	err := i.onAllCores(ctx, items, func(n int) (err error) {
		w, err := want(n)
		if err != nil {
			batch[n].refused = status.Convert(err)
			return nil
		}
		batch[n].want = w
		return i.prepareX509(ctx, &batch[n])
	})
	if err != nil {
		return nil, err
	}
	acts := make([]identity.Act, 0, items)
	for n := range batch {
		if b := &batch[n]; b.ticket != nil {
			details := append([][2]string{b.want.right, {"serial", b.ticket.Serial()}}, b.want.more...)
			acts = append(acts, svidAct("issued", "x509-svid", b.want.id, b.ticket.ExpiresAt(), details...))
		}
	}
	if err := i.recordAll(ctx, acts); err != nil {
		return nil, err
	}
	return batch, i.signAll(ctx, batch)
}

// signAll signs what is on record. An error fails the whole batch.
func (i *Issuer) signAll(ctx context.Context, batch []batched) (err error) {
	ctx, span := tracing.Start(ctx, "sign X509-SVIDs")
	defer func() { span.End(err) }()
	if span.Recorded() {
		granted := slices.DeleteFunc(slices.Clone(batch), func(b batched) bool { return b.ticket == nil })
		span.Int(tracing.Count, len(granted))
		span.Int(tracing.Refused, len(batch)-len(granted))
		tracing.List(span, tracing.EntryIDs, granted, func(b batched) string { return b.want.right[1] })
		tracing.List(span, tracing.SPIFFEIDs, granted, func(b batched) string { return b.want.id.String() })
	}
	return i.onAllCores(ctx, len(batch), func(n int) (err error) {
		b := &batch[n]
		if b.ticket == nil {
			return nil // refused
		}
		if b.svid, err = i.issued(b.ticket, b.want.id); err != nil {
			return i.internal(ctx, "sign an X509-SVID", err)
		}
		return nil
	})
}

// prepareX509 checks an item and draws its serial number. An error fails the
// whole batch.
func (i *Issuer) prepareX509(ctx context.Context, b *batched) error {
	w, through := &b.want, callerOf(ctx).id
	csr, err := parseCSRFor(w.csr, w.id)
	if err != nil {
		b.refused = status.New(codes.InvalidArgument, err.Error())
		return nil
	}
	notBefore, err := i.notBefore(w.id, through)
	if err != nil {
		return err
	}
	ticket, err := i.ca.PrepareX509(ca.X509Request{ID: w.id, PublicKey: csr.PublicKey, Life: w.life, DNSNames: w.dnsNames, Through: through, NotBefore: notBefore})
	if err != nil {
		b.refused = status.Convert(i.unsigned(ctx, err))
		return nil
	}
	b.ticket = ticket
	return nil
}

// onAllCores does the items of a batch, several at a time. The first error ends
// it, and so does the end of ctx.
func (i *Issuer) onAllCores(ctx context.Context, items int, do func(n int) error) error {
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
	leave, err := s.enterSigning(ctx, 1, s.ca.JWTSVIDLife()/2)
	if err != nil {
		return nil, err
	}
	defer leave()
	svid, err := s.newJWT(ctx, "issued", ca.JWTRequest{ID: e.SPIFFEID, Audience: req.GetAudience(), Life: e.JWTSVIDTTL, Through: callerOf(ctx).id}, [2]string{"entry", e.ID})
	if err != nil {
		return nil, err
	}
	svid.Hint = e.Hint
	return &svidv1.NewJWTSVIDResponse{Svid: svid}, nil
}

func (i *Issuer) newJWT(ctx context.Context, verb string, r ca.JWTRequest, details ...[2]string) (*types.JWTSVID, error) {
	if len(r.Audience) > maxAudience {
		return nil, status.Errorf(codes.InvalidArgument, "audience has %d members, at most %d are accepted", len(r.Audience), maxAudience)
	}
	for n, a := range r.Audience {
		if len(a) > maxAudienceLength {
			return nil, status.Errorf(codes.InvalidArgument, "audience[%d] has %d bytes, at most %d are accepted", n, len(a), maxAudienceLength)
		}
	}
	var err error
	if r.NotBefore, err = i.notBefore(r.ID, r.Through); err != nil {
		return nil, err
	}
	ticket, err := i.ca.PrepareJWT(r)
	if err != nil {
		return nil, i.unsigned(ctx, err)
	}
	details = append(append(details, [2]string{"serial", ticket.ID()}), audienceDetails(r.Audience)...)
	if err := i.record(ctx, svidAct(verb, "jwt-svid", r.ID, ticket.ExpiresAt(), details...)); err != nil {
		return nil, err
	}
	_, span := tracing.Start(ctx, "sign JWT-SVID")
	if span.Recorded() {
		span.String(tracing.SPIFFEID, r.ID.String())
	}
	token, err := i.ca.IssueJWT(ticket)
	span.End(err)
	if err != nil {
		return nil, i.internal(ctx, "sign a JWT-SVID", err)
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

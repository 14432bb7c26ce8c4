package agent

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"slices"
	"time"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/internal/tracing"
)

// signBatch is how many SVIDs are asked for at once: stock issuers refuse more
// than 500 at their default rate limit, and workloads get theirs earlier with
// fewer.
const signBatch = 200

// sign gets new SVIDs for the entries whose turn it is. What single entries are
// refused is tried again later and is no error.
func (a *Agent) sign(ctx context.Context) error {
	for batch := range slices.Chunk(a.cache.dueBy(time.Now()), signBatch) {
		if err := a.signBatch(ctx, batch); err != nil {
			a.stats.signErrors.Add(1)
			return fmt.Errorf("sign SVIDs: %w", err)
		}
	}
	return nil
}

func (a *Agent) signBatch(ctx context.Context, batch []signing) (err error) {
	ctx, span := tracing.Start(ctx, "get SVIDs signed")
	defer func() { span.End(err) }()
	span.Int(tracing.Count, len(batch))
	tracing.List(span, tracing.EntryIDs, batch, func(s signing) string { return s.id })
	tracing.List(span, tracing.SPIFFEIDs, batch, func(s signing) string { return s.spiffeID.String() })
	keys := make([]*ecdsa.PrivateKey, len(batch))
	req := &svidv1.BatchNewX509SVIDRequest{Params: make([]*svidv1.NewX509SVIDParams, len(batch))}
	for i, s := range batch {
		key, csr, err := newKey()
		if err != nil {
			return err
		}
		keys[i], req.Params[i] = key, &svidv1.NewX509SVIDParams{EntryId: s.id, Csr: csr}
	}
	var reply *svidv1.BatchNewX509SVIDResponse
	err = a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) (err error) {
		reply, err = svidv1.NewSVIDClient(cc).BatchNewX509SVID(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	if len(reply.Results) != len(batch) {
		return fmt.Errorf("the issuer answered %d requests with %d results", len(batch), len(reply.Results))
	}
	now := time.Now()
	out := make([]signed, len(batch))
	good, resync := 0, false
	var apart error
	for i, r := range reply.Results {
		out[i].signing = batch[i]
		err := a.acceptSigned(&out[i], r, keys[i])
		if err == nil {
			good++
			continue
		}
		out[i] = signed{signing: batch[i]}
		if ofClocks(err) != nil {
			out[i].apart, apart = true, err
			continue
		}
		a.log.Warn("no SVID for an entry", "entry_id", batch[i].id, "spiffe_id", batch[i].spiffeID.String(), "error", err)
		// The entry is gone, or the bundle is older than the authority that
		// signed: the issuer knows what this agent does not.
		resync = true
	}
	a.cache.setSigned(out, now)
	a.stats.signed.Add(uint64(good))
	span.Int(tracing.Refused, len(batch)-good)
	if resync {
		a.stats.signErrors.Add(1)
		a.syncNow()
	}
	return apart
}

func (a *Agent) acceptSigned(out *signed, r *svidv1.BatchNewX509SVIDResponse_Result, key *ecdsa.PrivateKey) error {
	if code := codes.Code(r.GetStatus().GetCode()); code != codes.OK {
		return fmt.Errorf("the issuer refuses: %s: %s", code, r.GetStatus().GetMessage())
	}
	svid, err := acceptSVID(r.GetSvid(), key, out.spiffeID, &a.self)
	if err != nil {
		return err
	}
	leaf := svid.Certificates[0]
	out.serial, out.notBefore, out.notAfter = leaf.SerialNumber, leaf.NotBefore, leaf.NotAfter
	out.chain, out.key, err = svid.MarshalRaw()
	return err
}

package agent

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/internal/tracing"
)

// signBatch is how many SVIDs are asked for at once: stock issuers refuse more
// than 500 at their default rate limit, and workloads get theirs earlier with
// fewer.
const signBatch = 200

// sign gets new SVIDs for the entries and instances whose turn it is: first what is
// replaced, in the order in which it expires, then what there was none of; and of
// each first the instances, since somebody may wait for them. What single ones are
// refused is tried again later and is no error.
func (a *Agent) sign(ctx context.Context) error {
	var held, fresh struct{ entries, instances []signing }
	for _, s := range a.cache.dueBy(time.Now()) {
		to := &held
		if s.until.IsZero() {
			to = &fresh
		}
		if s.key != "" {
			to.instances = append(to.instances, s)
		} else {
			to.entries = append(to.entries, s)
		}
	}
	// What is wrong with the one must not keep the other from being renewed.
	instances, entries := a.signAll(ctx, held.instances, a.askInstances), a.signAll(ctx, held.entries, a.askEntries)
	if instances == nil {
		instances = a.signAll(ctx, fresh.instances, a.askInstances)
	}
	if instances != nil {
		a.cache.setTried(append(held.instances, fresh.instances...))
	}
	if entries == nil {
		entries = a.signAll(ctx, fresh.entries, a.askEntries)
	}
	return errors.Join(instances, entries)
}

// asking asks the issuer for a batch of SVIDs.
type asking func(context.Context, *grpc.ClientConn, []signing, [][]byte) ([]answer, error)

func (a *Agent) signAll(ctx context.Context, list []signing, ask asking) error {
	for batch := range slices.Chunk(list, signBatch) {
		stated := admit.ForTheFirstTime(ctx)
		if until := batch[0].until; !until.IsZero() {
			stated = admit.WithLife(ctx, time.Until(until))
		}
		if err := a.signBatch(stated, batch, ask); err != nil {
			a.stats.signErrors.Add(1)
			return fmt.Errorf("sign SVIDs: %w", err)
		}
	}
	return nil
}

// answer is what the issuer says to one request.
type answer struct {
	code    codes.Code
	message string
	svid    *types.X509SVID
}

func (a *Agent) askEntries(ctx context.Context, cc *grpc.ClientConn, batch []signing, csrs [][]byte) ([]answer, error) {
	req := &svidv1.BatchNewX509SVIDRequest{}
	for i, s := range batch {
		req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: s.id, Csr: csrs[i]})
	}
	reply, err := svidv1.NewSVIDClient(cc).BatchNewX509SVID(ctx, req)
	if err != nil {
		return nil, err
	}
	var answers []answer
	for _, r := range reply.Results {
		answers = append(answers, answer{codes.Code(r.GetStatus().GetCode()), r.GetStatus().GetMessage(), r.GetSvid()})
	}
	return answers, nil
}

func (a *Agent) askInstances(ctx context.Context, cc *grpc.ClientConn, batch []signing, csrs [][]byte) ([]answer, error) {
	req := &templatev1.NewX509SVIDsRequest{}
	for i, s := range batch {
		req.Requests = append(req.Requests, &templatev1.X509Request{Claim: claimOf(s.id, s.spiffeID, s.selectors), Csr: csrs[i]})
	}
	reply, err := templatev1.NewIssuanceClient(cc).NewX509SVIDs(ctx, req)
	if err != nil {
		return nil, err
	}
	var answers []answer
	for _, r := range reply.Results {
		answers = append(answers, answer{codes.Code(r.GetCode()), r.GetMessage(), &types.X509SVID{CertChain: r.GetCertChain()}})
	}
	return answers, nil
}

func claimOf(template string, id spiffeid.ID, selectors []string) *templatev1.Claim {
	return &templatev1.Claim{TemplateId: template, SpiffeId: id.String(), Selectors: selectors}
}

// beginSigning begins a part of the refresh, or of the calls that somebody waits in.
func (a *Agent) beginSigning(ctx context.Context, batch []signing) (context.Context, tracing.Span) {
	const name = "get SVIDs signed"
	if causes := a.cache.takeCauses(batch); len(causes) > 0 {
		return a.opt.Tracer.Begin(ctx, name, causes...)
	}
	return tracing.Start(ctx, name)
}

func (a *Agent) signBatch(ctx context.Context, batch []signing, ask asking) (err error) {
	ctx, span := a.beginSigning(ctx, batch)
	defer func() { span.End(err) }()
	span.Int(tracing.Count, len(batch))
	tracing.List(span, tracing.EntryIDs, batch, func(s signing) string { return s.id })
	tracing.List(span, tracing.SPIFFEIDs, batch, func(s signing) string { return s.spiffeID.String() })
	keys, csrs := make([]*ecdsa.PrivateKey, len(batch)), make([][]byte, len(batch))
	for i := range batch {
		if keys[i], csrs[i], err = newKey(); err != nil {
			return err
		}
	}
	var answers []answer
	err = a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) (err error) {
		answers, err = ask(ctx, cc, batch, csrs)
		return err
	})
	if err != nil {
		return err
	}
	if len(answers) != len(batch) {
		return fmt.Errorf("the issuer answered %d requests with %d results", len(batch), len(answers))
	}
	now := time.Now()
	out := make([]signed, len(batch))
	good, resync := 0, false
	var apart error
	for i, r := range answers {
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
		what := "entry_id"
		if batch[i].key != "" {
			what = "template"
		}
		a.log.Warn("no SVID for a workload", what, batch[i].id, "spiffe_id", batch[i].spiffeID.String(), "error", err)
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

func (a *Agent) acceptSigned(out *signed, r answer, key *ecdsa.PrivateKey) error {
	if r.code != codes.OK {
		return fmt.Errorf("the issuer refuses: %s: %s", r.code, r.message)
	}
	svid, err := acceptSVID(r.svid, key, out.spiffeID, &a.self)
	if err != nil {
		return err
	}
	leaf := svid.Certificates[0]
	out.serial, out.notBefore, out.notAfter = leaf.SerialNumber, leaf.NotBefore, leaf.NotAfter
	out.chain, out.priv, err = svid.MarshalRaw()
	return err
}

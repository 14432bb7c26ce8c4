package issuer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/held"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/templatev1"
)

// maxClaimed bounds the selectors of a claim: more than any template asks for.
const maxClaimed = 64

// issuanceService is writ.identity.template.v1.Issuance.
type issuanceService struct {
	*Issuer
	templatev1.UnimplementedIssuanceServer
}

// refusals counts by reason what templates did not give.
type refusals map[template.Reason]*atomic.Uint64

func newRefusals() refusals {
	r := refusals{}
	for _, reason := range template.Reasons() {
		r[reason] = &atomic.Uint64{}
	}
	return r
}

// TemplateRefusals is how often a template did not give an agent what it would
// have, if not for a value.
func (i *Issuer) TemplateRefusals(r template.Reason) uint64 { return i.refusals[r].Load() }

// Authorized implements templatev1.IssuanceServer. As with entries, nothing is kept of
// an agent: the digest is of what it would be sent, whichever replica it asks.
func (s *issuanceService) Authorized(req *templatev1.AuthorizedRequest, stream templatev1.Issuance_AuthorizedServer) error {
	caller := callerOf(stream.Context())
	agent := s.index.Agent(caller.id)
	if agent == nil {
		return nil
	}
	own := textsOf(agent.Selectors)
	pages := []*templatev1.AuthorizedResponse{{}}
	size, sum := 0, held.NewSum()
	for _, t := range s.index.AuthorizedTemplates(caller.id, s.now()) {
		rule, err := s.ruleFor(stream.Context(), t, own)
		if err != nil {
			continue
		}
		pb := ruleToProto(t, rule)
		content, err := proto.MarshalOptions{Deterministic: true}.Marshal(pb)
		if err != nil {
			return s.internal(stream.Context(), "encode a template", err)
		}
		sum.Add(t.ID, content)
		page := pages[len(pages)-1]
		if len(page.Templates) > 0 && size+len(content)+8 > maxReply {
			page, size = &templatev1.AuthorizedResponse{}, 0
			pages = append(pages, page)
		}
		page.Templates = append(page.Templates, pb)
		size += len(content) + 8
	}
	digest := sum.Digest()
	if bytes.Equal(req.GetDigest(), digest[:]) {
		return stream.Send(&templatev1.AuthorizedResponse{Digest: digest[:], Unchanged: true})
	}
	pages[len(pages)-1].Digest = digest[:]
	for _, page := range pages {
		if err := stream.Send(page); err != nil {
			return err
		}
	}
	return nil
}

// ruleFor is a template with an agent's own values in it. It logs and counts what
// is in the way.
func (i *Issuer) ruleFor(ctx context.Context, t *registry.Template, own []string) (*template.Rule, error) {
	rule, err := t.Rule.ForAgent(own)
	if err != nil {
		i.notGiven(ctx, t, err)
	}
	return rule, err
}

func (i *Issuer) notGiven(ctx context.Context, t *registry.Template, err error) {
	i.log.WarnContext(ctx, "a template gives an agent no identity", "template", t.ID, "spiffe_id", t.Rule.SPIFFEID.String(), "agent", callerOf(ctx).id.String(), "error", err)
	var refused *template.RefusedError
	if errors.As(err, &refused) {
		i.refusals[refused.Reason].Add(1)
	}
}

// NewX509SVIDs implements templatev1.IssuanceServer.
func (s *issuanceService) NewX509SVIDs(ctx context.Context, req *templatev1.NewX509SVIDsRequest) (*templatev1.NewX509SVIDsResponse, error) {
	requests := req.GetRequests()
	leave, err := s.admitBatch(ctx, "requests", len(requests))
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := s.refreshTemplates(ctx, func(known func(*templatev1.Claim) bool) bool {
		return !slices.ContainsFunc(requests, func(r *templatev1.X509Request) bool { return !known(r.GetClaim()) })
	}); err != nil {
		return nil, err
	}
	batch, err := s.signX509(ctx, len(requests), func(n int) (wanted, error) {
		t, in, err := s.claimed(ctx, requests[n].GetClaim())
		if err != nil {
			return wanted{}, err
		}
		w := wanted{id: in.ID, csr: requests[n].GetCsr(), life: t.X509SVIDTTL, dnsNames: in.DNSNames}
		w.right, w.more = claimDetails(t, in)
		return w, nil
	})
	if err != nil {
		return nil, err
	}
	resp := &templatev1.NewX509SVIDsResponse{}
	for _, item := range batch {
		result := &templatev1.X509Result{}
		if item.refused != nil {
			result.Code, result.Message = int32(item.refused.Code()), item.refused.Message()
		} else {
			result.CertChain = item.svid.CertChain
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}

// NewJWTSVID implements templatev1.IssuanceServer.
func (s *issuanceService) NewJWTSVID(ctx context.Context, req *templatev1.NewJWTSVIDRequest) (*templatev1.NewJWTSVIDResponse, error) {
	if err := s.refreshTemplates(ctx, func(known func(*templatev1.Claim) bool) bool { return known(req.GetClaim()) }); err != nil {
		return nil, err
	}
	// First the limit: what is refused is logged.
	if err := s.waitToSign(ctx, 1); err != nil {
		return nil, err
	}
	leave, err := s.enterSigning(ctx, 1, s.ca.JWTSVIDLife()/2)
	if err != nil {
		return nil, err
	}
	defer leave()
	t, in, err := s.claimed(ctx, req.GetClaim())
	if err != nil {
		return nil, err
	}
	right, more := claimDetails(t, in)
	svid, err := s.newJWT(ctx, "issued", ca.JWTRequest{ID: in.ID, Audience: req.GetAudience(), Life: t.JWTSVIDTTL, Through: callerOf(ctx).id}, append([][2]string{right}, more...)...)
	if err != nil {
		return nil, err
	}
	return &templatev1.NewJWTSVIDResponse{Token: svid.Token, IssuedAt: svid.IssuedAt, ExpiresAt: svid.ExpiresAt}, nil
}

// refreshTemplates looks into the database where a template of a request is not
// known: another replica may have made it a moment ago.
func (i *Issuer) refreshTemplates(ctx context.Context, all func(known func(*templatev1.Claim) bool) bool) error {
	if !i.store.Shared() {
		return nil
	}
	agent, now := callerOf(ctx).id, i.now()
	known := func(c *templatev1.Claim) bool {
		t, _ := i.index.LookupTemplate(agent, c.GetTemplateId(), now)
		return t != nil
	}
	if all(known) {
		return nil
	}
	return i.refresh(ctx)
}

// claimed checks what an agent says of a workload, by the template as it is here
// and the agent as it was attested. The error is for the wire.
func (i *Issuer) claimed(ctx context.Context, c *templatev1.Claim) (*registry.Template, *template.Instance, error) {
	if c.GetTemplateId() == "" {
		return nil, nil, status.Error(codes.InvalidArgument, "claim.template_id is missing")
	}
	t, agent := i.index.LookupTemplate(callerOf(ctx).id, c.GetTemplateId(), i.now())
	if t == nil {
		return nil, nil, status.Error(codes.NotFound, "template not found, or not authorized for this agent")
	}
	rule, err := i.ruleFor(ctx, t, textsOf(agent.Selectors))
	if err != nil {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "the template is not for this agent: %v", err)
	}
	selectors := c.GetSelectors()
	if len(selectors) > maxClaimed {
		return nil, nil, status.Errorf(codes.InvalidArgument, "claim.selectors: there are %d, at most %d are accepted", len(selectors), maxClaimed)
	}
	for n, s := range selectors {
		if !rule.AsksFor(s) {
			return nil, nil, status.Errorf(codes.InvalidArgument, "claim.selectors[%d]: the template does not ask for it", n)
		}
	}
	in, err := rule.Resolve(selectors)
	switch {
	case errors.Is(err, template.ErrNoMatch):
		return nil, nil, status.Error(codes.InvalidArgument, "claim.selectors: one that the template asks for is missing")
	case err != nil:
		i.notGiven(ctx, t, err)
		return nil, nil, status.Errorf(codes.InvalidArgument, "claim.selectors: %v", err)
	case in.ID.String() != c.GetSpiffeId():
		return nil, nil, status.Errorf(codes.InvalidArgument, "claim.spiffe_id: by these selectors it is %q", in.ID)
	case isReserved(in.ID) || strings.HasPrefix(in.ID.Path(), ownPrefix):
		return nil, nil, status.Errorf(codes.InvalidArgument, "claim.spiffe_id: %q is a name of the control plane", in.ID)
	case i.index.Names(in.ID):
		i.notGiven(ctx, t, &template.RefusedError{Reason: template.Taken, Variable: in.ID.String(), Detail: "an entry gives this name"})
		return nil, nil, status.Errorf(codes.AlreadyExists, "claim.spiffe_id: an entry gives %q, so no template does", in.ID)
	}
	return t, &in, nil
}

func claimDetails(t *registry.Template, in *template.Instance) (right [2]string, more [][2]string) {
	for _, s := range in.Selectors {
		more = append(more, [2]string{"selector", s})
	}
	return [2]string{"template", t.ID}, more
}

func textsOf(selectors []registry.Selector) []string {
	list := make([]string, len(selectors))
	for n, s := range selectors {
		list[n] = s.String()
	}
	return list
}

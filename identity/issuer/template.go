package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/templatev1"
)

// Limits of one template. Its selectors and those of its variables are put on
// record with each SVID.
const (
	maxTemplateSelectors = 16
	maxTemplateSelector  = 256 // bytes
	maxTemplateDNSNames  = 16
	maxTemplateFederates = 64
)

// templateService is writ.identity.template.v1.Admin. What agents call is in
// instance.go.
type templateService struct {
	*Issuer
	templatev1.UnimplementedAdminServer
}

// Create implements templatev1.AdminServer.
func (s *templateService) Create(ctx context.Context, req *templatev1.CreateRequest) (*templatev1.CreateResponse, error) {
	asked, err := templateFromProto(s.cfg.TrustDomain, req.GetTemplate())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "template: %v", err)
	}
	var made *registry.Template
	err = s.update(ctx, func(tx *sqlstore.Tx, record recorder) (err error) {
		if err := checkTemplateFederates(tx, asked.FederatesWith, nil); err != nil {
			return err
		}
		if made, err = tx.CreateTemplate(asked); err != nil {
			return err
		}
		return record(templateAct("created", made))
	})
	if err != nil {
		return nil, s.templateError(ctx, "create the template", err)
	}
	return &templatev1.CreateResponse{Template: templateToProto(made), Warnings: registry.TemplateDoubts(&made.Rule)}, nil
}

func checkTemplateFederates(tx *sqlstore.Tx, with, before []string) error {
	code, err := checkFederates(tx, with, before)
	if code == codes.OK || code == codes.Internal {
		return err
	}
	return status.Errorf(code, "template: %v", err)
}

// Get implements templatev1.AdminServer.
func (s *templateService) Get(_ context.Context, req *templatev1.GetRequest) (*templatev1.GetResponse, error) {
	t := s.index.Template(req.GetId())
	if t == nil {
		return nil, errNoTemplate
	}
	return &templatev1.GetResponse{Template: templateToProto(t)}, nil
}

// List implements templatev1.AdminServer.
func (s *templateService) List(_ context.Context, req *templatev1.ListRequest) (*templatev1.ListResponse, error) {
	p, err := newPage[*templatev1.Template](req.GetPageSize())
	if err != nil {
		return nil, err
	}
	for _, t := range s.index.Templates() {
		if t.ID > req.GetPageToken() && !p.add(t.ID, templateToProto(t)) {
			break
		}
	}
	return &templatev1.ListResponse{Templates: p.items, NextPageToken: p.next}, nil
}

// Update implements templatev1.AdminServer.
func (s *templateService) Update(ctx context.Context, req *templatev1.UpdateRequest) (*templatev1.UpdateResponse, error) {
	asked, err := templateFromProto(s.cfg.TrustDomain, req.GetTemplate())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "template: %v", err)
	}
	if asked.ID == "" {
		return nil, status.Error(codes.InvalidArgument, "template: id: missing")
	}
	var made *registry.Template
	err = s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		old, err := tx.Template(asked.ID)
		if err != nil {
			return err
		}
		if known := req.GetTemplate().GetRevision(); known != 0 && known != old.RevisionNumber {
			return status.Errorf(codes.Aborted, "template: revision: %d was read, and it is %d by now: read it again", known, old.RevisionNumber)
		}
		if err := checkTemplateFederates(tx, asked.FederatesWith, old.FederatesWith); err != nil {
			return err
		}
		if made, err = tx.UpdateTemplate(asked); err != nil {
			return err
		}
		return record(templateAct("updated", made))
	})
	if err != nil {
		return nil, s.templateError(ctx, "update the template", err)
	}
	return &templatev1.UpdateResponse{Template: templateToProto(made), Warnings: registry.TemplateDoubts(&made.Rule)}, nil
}

// Delete implements templatev1.AdminServer.
func (s *templateService) Delete(ctx context.Context, req *templatev1.DeleteRequest) (*templatev1.DeleteResponse, error) {
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		old, err := tx.DeleteTemplate(req.GetId())
		if err != nil {
			return err
		}
		return record(templateAct("deleted", old))
	})
	if err != nil {
		return nil, s.templateError(ctx, "delete the template", err)
	}
	return &templatev1.DeleteResponse{}, nil
}

var errNoTemplate = status.Error(codes.NotFound, "template not found")

// templateError is what the wire sees.
func (i *Issuer) templateError(ctx context.Context, what string, err error) error {
	var similar *sqlstore.SimilarTemplateError
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return errNoTemplate
	case errors.As(err, &similar):
		return status.Error(codes.AlreadyExists, similar.Error())
	case errors.Is(err, sqlstore.ErrTooManyTemplates):
		return status.Error(codes.ResourceExhausted, sqlstore.ErrTooManyTemplates.Error())
	}
	return i.internal(ctx, what, err)
}

func templateAct(verb string, t *registry.Template) identity.Act {
	act := identity.Act{
		Kind: identity.ActAdmin, Verb: verb, Object: "template", ObjectID: t.ID,
		Details: [][2]string{{"spiffe_id", t.Rule.SPIFFEID.String()}, {"parent_id", t.ParentID.String()}},
	}
	for _, s := range t.Rule.Selectors {
		act.Details = append(act.Details, [2]string{"selector", s})
	}
	if verb != "deleted" {
		doubts := registry.TemplateDoubts(&t.Rule)
		for _, d := range doubts[:min(len(doubts), maxDoubts)] {
			act.Details = append(act.Details, [2]string{"warning", d})
		}
	}
	return act
}

func templateToProto(t *registry.Template) *templatev1.Template {
	pb := ruleToProto(t, &t.Rule)
	pb.ParentId = t.ParentID.String()
	pb.X509SvidTtl, pb.JwtSvidTtl = ttlToProto(t.X509SVIDTTL), ttlToProto(t.JWTSVIDTTL)
	return pb
}

// ruleToProto is what an agent needs of a template.
func ruleToProto(t *registry.Template, r *template.Rule) *templatev1.Template {
	return &templatev1.Template{
		Id: t.ID, SpiffeId: r.SPIFFEID.String(), Selectors: r.Selectors, FederatesWith: t.FederatesWith,
		DnsNames: registry.Texts(r.DNSNames), Hint: t.Hint, Revision: t.RevisionNumber, CreatedAt: seconds(t.CreatedAt),
	}
}

// templateFromProto checks a template. The error names the field.
func templateFromProto(td spiffeid.TrustDomain, pb *templatev1.Template) (t registry.Template, err error) {
	if pb == nil {
		return t, errors.New("missing")
	}
	t = registry.Template{ID: pb.GetId(), Hint: pb.GetHint()}
	if err := checkEntryID(t.ID); err != nil {
		return t, err
	}
	if t.ParentID, err = templateParent(td, pb.GetParentId()); err != nil {
		return t, fmt.Errorf("parent_id: %w", err)
	}
	if t.Rule, err = ruleFromProto(td, pb); err != nil {
		return t, err
	}
	if t.X509SVIDTTL, err = ttlFromProto(pb.GetX509SvidTtl()); err != nil {
		return t, fmt.Errorf("x509_svid_ttl: %w", err)
	}
	if t.JWTSVIDTTL, err = ttlFromProto(pb.GetJwtSvidTtl()); err != nil {
		return t, fmt.Errorf("jwt_svid_ttl: %w", err)
	}
	if n := len(pb.GetFederatesWith()); n > maxTemplateFederates {
		return t, fmt.Errorf("federates_with: %d trust domains, at most %d are accepted", n, maxTemplateFederates)
	}
	if t.FederatesWith, err = federatesFromProto(td, pb.GetFederatesWith()); err != nil {
		return t, err
	}
	if len(t.Hint) > maxHint {
		return t, fmt.Errorf("hint has %d bytes, at most %d are accepted", len(t.Hint), maxHint)
	}
	return t, nil
}

// templateParent reads who may be an agent of a template: one, or those that an
// entry names.
func templateParent(td spiffeid.TrustDomain, text string) (spiffeid.ID, error) {
	if text == "" {
		return spiffeid.ID{}, errors.New("missing")
	}
	id, err := spiffeid.FromString(text)
	switch {
	case err != nil:
		return id, err
	case !id.MemberOf(td):
		return id, fmt.Errorf("trust domain is %q, want %q", id.TrustDomain().Name(), td.Name())
	case id.Path() == "":
		return id, errors.New("path is empty: that names the trust domain")
	case isReserved(id) && !isAgentPath(id.Path()):
		return id, fmt.Errorf("%q is no agent: to give a template to many, make an entry below it that names them by their selectors, and make that the parent", id)
	}
	return id, nil
}

// ruleFromProto reads what a template gives to whom.
func ruleFromProto(td spiffeid.TrustDomain, pb *templatev1.Template) (r template.Rule, err error) {
	if r.SPIFFEID, err = template.ParseSPIFFEID(td, pb.GetSpiffeId()); err != nil {
		return r, fmt.Errorf("spiffe_id: %w", err)
	}
	if len(pb.GetSpiffeId()) > template.MaxPattern {
		return r, fmt.Errorf("spiffe_id: it has %d bytes, at most %d are accepted", len(pb.GetSpiffeId()), template.MaxPattern)
	}
	variables := r.SPIFFEID.Variables()
	if len(variables) == 0 {
		return r, errors.New("spiffe_id: there is no variable, such as {unix:user}, in it: make it an entry")
	}
	if n := len(pb.GetDnsNames()); n > maxTemplateDNSNames {
		return r, fmt.Errorf("dns_names: %d names, at most %d are accepted", n, maxTemplateDNSNames)
	}
	for n, text := range pb.GetDnsNames() {
		p, err := template.ParseDNSName(text)
		if err == nil && len(text) > template.MaxPattern {
			err = fmt.Errorf("it has %d bytes, at most %d are accepted", len(text), template.MaxPattern)
		}
		if err != nil {
			return r, fmt.Errorf("dns_names[%d]: %w", n, err)
		}
		r.DNSNames = append(r.DNSNames, p)
		variables = append(variables, p.Variables()...)
	}
	if n := len(variables); n > template.MaxVariables {
		return r, fmt.Errorf("spiffe_id and dns_names have %d variables, at most %d are accepted", n, template.MaxVariables)
	}
	if n := len(pb.GetSelectors()); n > maxTemplateSelectors {
		return r, fmt.Errorf("selectors: there are %d, at most %d are accepted", n, maxTemplateSelectors)
	}
	for n, text := range pb.GetSelectors() {
		typ, value, _ := strings.Cut(text, ":")
		switch {
		case typ == "" || value == "":
			return r, fmt.Errorf("selectors[%d]: want TYPE:VALUE, as in unix:group:staff, got %.100q", n, text)
		case len(text) > maxTemplateSelector:
			return r, fmt.Errorf("selectors[%d]: it has %d bytes, at most %d are accepted", n, len(text), maxTemplateSelector)
		case typ == "spiffe_id":
			return r, fmt.Errorf("selectors[%d]: %.100q is a selector of agents, which no workload has: make it the parent", n, text)
		}
		r.Selectors = append(r.Selectors, text)
	}
	slices.Sort(r.Selectors)
	r.Selectors = slices.Compact(r.Selectors)
	if len(r.Selectors) == 0 && !slices.ContainsFunc(variables, func(v template.Variable) bool { return !v.Agent }) {
		return r, errors.New("selectors: without any, and without a variable of workloads, every process of a node would have the name")
	}
	return r, nil
}

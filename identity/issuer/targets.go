package issuer

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/templatev1"
)

// Everything is the target of a call that is not about certain names.
const Everything = "/"

// Targets are the SPIFFE IDs that an administrator's call reads or changes, and
// the parents that it hangs entries and templates on. A template counts by its
// pattern, with {} for each variable. A call that is not about certain names,
// about an entry that is not there, or that changes an entry which makes its
// holder more than a workload (admin, downstream), before or after, targets
// Everything as well, so that whoever may act under a prefix only may not make it.
func (i *Issuer) Targets(req any) (targets, parents []string) {
	t := collected{index: i.index, td: i.cfg.TrustDomain}
	switch r := req.(type) {
	case *entryv1.BatchCreateEntryRequest:
		for _, e := range r.GetEntries() {
			t.names(e.GetSpiffeId())
			t.under(e.GetParentId())
			t.privileged(e.GetAdmin() || e.GetDownstream())
		}
	case *entryv1.BatchUpdateEntryRequest:
		for _, e := range r.GetEntries() {
			t.change(e.GetId())
			t.privileged(e.GetAdmin() || e.GetDownstream())
			if e.GetSpiffeId() != nil {
				t.names(e.GetSpiffeId())
			}
			if e.GetParentId() != nil {
				t.under(e.GetParentId())
			}
		}
	case *entryv1.BatchDeleteEntryRequest:
		for _, id := range r.GetIds() {
			t.change(id)
		}
	case *entryv1.GetEntryRequest:
		t.entry(r.GetId())
	case *entryv1.ListEntriesRequest:
		t.names(r.GetFilter().GetBySpiffeId())
	case *entryv1.CountEntriesRequest:
		t.names(r.GetFilter().GetBySpiffeId())
	case *agentv1.GetAgentRequest:
		t.names(r.GetId())
	case *agentv1.DeleteAgentRequest:
		t.names(r.GetId())
	case *agentv1.BanAgentRequest:
		t.names(r.GetId())
	case *agentv1.CreateJoinTokenRequest:
		t.names(r.GetAgentId())
	case *templatev1.CreateRequest:
		t.template(r.GetTemplate())
	case *templatev1.UpdateRequest:
		t.templateNow(r.GetTemplate().GetId())
		t.template(r.GetTemplate())
	case *templatev1.GetRequest:
		t.templateNow(r.GetId())
	case *templatev1.DeleteRequest:
		t.templateNow(r.GetId())
	case *svidv1.MintJWTSVIDRequest:
		t.names(r.GetId())
	case *svidv1.MintX509SVIDRequest:
		csr, err := parseCSR(r.GetCsr())
		if err != nil || len(csr.URIs) != 1 {
			t.everything()
			break
		}
		t.name(spiffeid.FromURI(csr.URIs[0]))
	}
	if len(t.targets) == 0 {
		t.everything()
	}
	return t.targets, t.parents
}

type collected struct {
	index            *registry.Index
	td               spiffeid.TrustDomain
	targets, parents []string
}

func (t *collected) everything() { t.targets = append(t.targets, Everything) }

func (t *collected) name(id spiffeid.ID, err error) {
	if err != nil || id.IsZero() {
		t.everything()
		return
	}
	t.targets = append(t.targets, id.String())
}

// names adds an ID of a request; one that is missing or malformed, which the
// call itself will refuse, is everything.
func (t *collected) names(id *types.SPIFFEID) { t.name(read(id)) }

func (t *collected) under(id *types.SPIFFEID) {
	parent, err := read(id)
	if err != nil {
		t.parents = append(t.parents, Everything)
		return
	}
	t.parents = append(t.parents, parent.String())
}

// entry adds what an entry names now.
func (t *collected) entry(id string) *registry.Entry {
	e := t.index.Entry(id)
	if e == nil {
		t.everything()
		return nil
	}
	t.targets = append(t.targets, e.SPIFFEID.String())
	t.parents = append(t.parents, e.ParentID.String())
	return e
}

// change adds what an entry that is changed names now.
func (t *collected) change(id string) {
	if e := t.entry(id); e != nil {
		t.privileged(e.Admin || e.Downstream)
	}
}

// privileged adds everything for what is worth as much as the trust domain.
func (t *collected) privileged(is bool) {
	if is {
		t.everything()
	}
}

// template adds what a template is to name: its pattern with {} for each variable.
// Whatever is below a prefix in this form is below it in every instance.
func (t *collected) template(pb *templatev1.Template) {
	target := Everything
	if p, err := template.ParseSPIFFEID(t.td, pb.GetSpiffeId()); err == nil {
		target = p.Shape()
	}
	t.targets = append(t.targets, target)
	parent := Everything
	if id, err := spiffeid.FromString(pb.GetParentId()); err == nil {
		parent = id.String()
	}
	t.parents = append(t.parents, parent)
}

// templateNow adds what a template names now.
func (t *collected) templateNow(id string) {
	now := t.index.Template(id)
	if now == nil {
		t.everything()
		return
	}
	t.targets = append(t.targets, now.Rule.SPIFFEID.Shape())
	t.parents = append(t.parents, now.ParentID.String())
}

func read(id *types.SPIFFEID) (spiffeid.ID, error) {
	td, err := spiffeid.TrustDomainFromString(id.GetTrustDomain())
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, id.GetPath())
}

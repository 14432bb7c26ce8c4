package issuer_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/watchv1"
)

func (w *world) templates() templatev1.AdminClient { return templatev1.NewAdminClient(w.admin) }

func (w *world) createTemplate(t *templatev1.Template) *templatev1.Template {
	w.t.Helper()
	resp, err := w.templates().Create(w.t.Context(), &templatev1.CreateRequest{Template: t})
	must(w.t, err)
	return resp.Template
}

func (a *agent) issuance() templatev1.IssuanceClient { return templatev1.NewIssuanceClient(a.conn) }

// authorized is what the agent is told of templates.
func (a *agent) authorized() []*templatev1.Template {
	a.w.t.Helper()
	return a.authorizedSince(nil).Templates
}

// authorizedSince is what it is told that had those of digest: all pages as one.
func (a *agent) authorizedSince(digest []byte) *templatev1.AuthorizedResponse {
	a.w.t.Helper()
	stream, err := a.issuance().Authorized(a.w.t.Context(), &templatev1.AuthorizedRequest{Digest: digest})
	must(a.w.t, err)
	all := &templatev1.AuthorizedResponse{}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(a.w.t, err)
		all.Templates, all.Digest, all.Unchanged = append(all.Templates, page.Templates...), page.Digest, page.Unchanged
	}
}

// attested gives the agent selectors, as a node attestor would have.
func (a *agent) attested(selectors ...registry.Selector) {
	a.w.t.Helper()
	must(a.w.t, a.w.store.Update(a.w.t.Context(), func(tx *sqlstore.Tx) error {
		now, err := tx.Agent(a.id)
		if err != nil {
			return err
		}
		now.Selectors = selectors
		return tx.PutAgent(*now)
	}))
}

// issuedThrough is what is on record of what the agent got for workloads.
func (w *world) issuedThrough(a *agent, object string) []identity.Act {
	return slices.DeleteFunc(w.did(object, "issued"), func(act identity.Act) bool { return act.Actor != a.id.String() })
}

func userTemplate() *templatev1.Template {
	return &templatev1.Template{SpiffeId: "spiffe://example.org/user/{unix:user}", ParentId: "spiffe://example.org/node/a"}
}

func claim(t *templatev1.Template, id string, selectors ...string) *templatev1.Claim {
	return &templatev1.Claim{TemplateId: t.GetId(), SpiffeId: "spiffe://example.org" + id, Selectors: selectors}
}

func TestTemplateValidation(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 300)
	many := func(n int, text string) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf(text, i))
		}
		return list
	}
	for name, tt := range map[string]struct {
		change func(*templatev1.Template)
		want   string
	}{
		"no pattern":           {func(m *templatev1.Template) { m.SpiffeId = "" }, "template: spiffe_id: missing"},
		"no variable":          {func(m *templatev1.Template) { m.SpiffeId = "spiffe://example.org/user/root" }, "spiffe_id: there is no variable"},
		"variable first":       {func(m *templatev1.Template) { m.SpiffeId = "spiffe://example.org/{unix:user}" }, "spiffe_id: the first segment"},
		"agents' names":        {func(m *templatev1.Template) { m.SpiffeId = "spiffe://example.org/spire/agent/{unix:user}" }, "spiffe_id: names under /spire/"},
		"the control plane's":  {func(m *templatev1.Template) { m.SpiffeId = "spiffe://example.org/writ/{unix:user}" }, "spiffe_id: names under /writ/"},
		"another trust domain": {func(m *templatev1.Template) { m.SpiffeId = "spiffe://other.org/user/{unix:user}" }, "spiffe_id: want a SPIFFE ID of our trust domain"},
		"two in a segment":     {func(m *templatev1.Template) { m.SpiffeId = "spiffe://example.org/user/{unix:user}-{unix:uid}" }, "same segment"},
		"long":                 {func(m *templatev1.Template) { m.SpiffeId += "/" + strings.Repeat("x", 1024) }, "spiffe_id: it has"},
		"too many variables": {func(m *templatev1.Template) {
			m.SpiffeId += strings.Repeat("/{x:y}", 10)
			m.DnsNames = many(6, "{x:y%d}")
		}, "17 variables"},
		"no parent":            {func(m *templatev1.Template) { m.ParentId = "" }, "parent_id: missing"},
		"bad parent":           {func(m *templatev1.Template) { m.ParentId = "node" }, "parent_id: scheme"},
		"parent elsewhere":     {func(m *templatev1.Template) { m.ParentId = "spiffe://other.org/a" }, "parent_id: trust domain"},
		"parent is a domain":   {func(m *templatev1.Template) { m.ParentId = "spiffe://example.org" }, "parent_id: path is empty"},
		"parent is the issuer": {func(m *templatev1.Template) { m.ParentId = "spiffe://example.org/spire/server" }, "parent_id: \"spiffe://example.org/spire/server\" is no agent"},
		"bad selector":         {func(m *templatev1.Template) { m.Selectors = []string{"unix:uid:1", "unix"} }, "selectors[1]: want TYPE:VALUE"},
		"selector of agents":   {func(m *templatev1.Template) { m.Selectors = []string{"spiffe_id:spiffe://x/y"} }, "selectors[0]: "},
		"long selector":        {func(m *templatev1.Template) { m.Selectors = []string{"unix:user:" + long} }, "selectors[0]: it has"},
		"many selectors":       {func(m *templatev1.Template) { m.Selectors = many(17, "unix:gid:%d") }, "selectors: there are 17"},
		"all processes of a node": {func(m *templatev1.Template) {
			m.SpiffeId = "spiffe://example.org/node/{agent:k8s_psat:agent_node_name}"
		}, "selectors: without any"},
		"short life":              {func(m *templatev1.Template) { m.X509SvidTtl = 1 }, "x509_svid_ttl: 1 seconds"},
		"negative life":           {func(m *templatev1.Template) { m.JwtSvidTtl = -1 }, "jwt_svid_ttl: -1 seconds"},
		"federates with us":       {func(m *templatev1.Template) { m.FederatesWith = []string{"example.org"} }, "federates_with[0]: "},
		"federates with nonsense": {func(m *templatev1.Template) { m.FederatesWith = []string{"a.org", "Ä"} }, "federates_with[1]: "},
		"federates with many":     {func(m *templatev1.Template) { m.FederatesWith = many(65, "d%d.org") }, "federates_with: 65"},
		"DNS name":                {func(m *templatev1.Template) { m.DnsNames = []string{"a", "*.{unix:user}"} }, "dns_names[1]: "},
		"many DNS names":          {func(m *templatev1.Template) { m.DnsNames = many(17, "a%d") }, "dns_names: 17"},
		"hint":                    {func(m *templatev1.Template) { m.Hint = strings.Repeat("h", 1025) }, "hint has"},
		"id":                      {func(m *templatev1.Template) { m.Id = "a b" }, "template: id "},
	} {
		m := userTemplate()
		tt.change(m)
		_, err := w.templates().Create(t.Context(), &templatev1.CreateRequest{Template: m})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		wantCode(t, err, codes.InvalidArgument)
	}
	if len(w.did("template", "created"))+len(w.store.Index().Templates()) != 0 {
		t.Error("something was made")
	}
}

func TestTemplateAdministration(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.setBundles(foreignBundle(t, "a.org"), foreignBundle(t, "b.org"))
	asked := &templatev1.Template{
		Id: "shop", SpiffeId: "spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}", ParentId: "spiffe://example.org/node/a",
		Selectors: []string{"k8s:pod-label:mesh:on", "k8s:ns:shop", "k8s:ns:shop"}, X509SvidTtl: 60, JwtSvidTtl: 30, FederatesWith: []string{"b.org", "a.org"},
		DnsNames: []string{"{k8s:sa}.{k8s:ns}.svc"}, Hint: "h", Revision: 7, CreatedAt: 7,
	}
	made := w.createTemplate(asked)
	want := proto.CloneOf(asked)
	want.Selectors, want.FederatesWith, want.Revision, want.CreatedAt = []string{"k8s:ns:shop", "k8s:pod-label:mesh:on"}, []string{"a.org", "b.org"}, made.Revision, made.CreatedAt
	if diff := cmp.Diff(want, made, protocmp.Transform()); diff != "" || made.Revision == 7 || made.CreatedAt == 7 {
		t.Errorf("made %v: %s", made, diff)
	}
	got, err := w.templates().Get(ctx, &templatev1.GetRequest{Id: "shop"})
	must(t, err)
	if diff := cmp.Diff(made, got.Template, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	_, err = w.templates().Create(ctx, &templatev1.CreateRequest{Template: asked})
	wantCode(t, err, codes.AlreadyExists)
	for n := range 4 {
		m := userTemplate()
		m.Id = fmt.Sprint(n)
		m.ParentId += m.Id
		w.createTemplate(m)
	}
	var listed []string
	for token := ""; ; {
		page, err := w.templates().List(ctx, &templatev1.ListRequest{PageSize: 2, PageToken: token})
		must(t, err)
		for _, m := range page.Templates {
			listed = append(listed, m.Id)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if !slices.Equal(listed, []string{"0", "1", "2", "3", "shop"}) {
		t.Errorf("listed %v", listed)
	}

	next := proto.CloneOf(made)
	next.Hint, next.Revision = "other", made.Revision+1
	_, err = w.templates().Update(ctx, &templatev1.UpdateRequest{Template: next})
	wantCode(t, err, codes.Aborted)
	next.Revision = made.Revision
	updated, err := w.templates().Update(ctx, &templatev1.UpdateRequest{Template: next})
	must(t, err)
	if updated.Template.Hint != "other" || updated.Template.Revision <= made.Revision || updated.Template.CreatedAt != made.CreatedAt {
		t.Errorf("updated to %v", updated.Template)
	}
	_, err = w.templates().Update(ctx, &templatev1.UpdateRequest{Template: userTemplate()})
	wantCode(t, err, codes.InvalidArgument)
	next.Id, next.Revision = "unknown", 0
	_, err = w.templates().Update(ctx, &templatev1.UpdateRequest{Template: next})
	wantCode(t, err, codes.NotFound)
	_, err = w.templates().Delete(ctx, &templatev1.DeleteRequest{Id: "shop"})
	must(t, err)
	for _, err := range []error{
		func() error { _, err := w.templates().Delete(ctx, &templatev1.DeleteRequest{Id: "shop"}); return err }(),
		func() error { _, err := w.templates().Get(ctx, &templatev1.GetRequest{Id: "shop"}); return err }(),
	} {
		wantCode(t, err, codes.NotFound)
	}
	for verb, n := range map[string]int{"created": 5, "updated": 1, "deleted": 1} {
		if acts := w.did("template", verb); len(acts) != n || acts[0].Actor != "unix:uid:1000" || acts[0].ObjectID != "shop" || !slices.Contains(acts[0].Details, [2]string{"spiffe_id", asked.SpiffeId}) {
			t.Errorf("%s: on record are %+v", verb, acts)
		}
	}
	// What cannot be recorded is not done.
	w.refuseActs(func(a identity.Act) bool { return a.Object == "template" })
	_, err = w.templates().Delete(ctx, &templatev1.DeleteRequest{Id: "0"})
	wantCode(t, err, codes.Unavailable)
	if w.store.Index().Template("0") == nil {
		t.Error("deleted without a record")
	}
}

func TestTemplateWarnings(t *testing.T) {
	w := newWorld(t)
	for pattern, want := range map[string]string{
		"{unix:user}": "", "{k8s:pod-label:app}": "", "{agent:k8s_psat:cluster}/{unix:uid}": "",
		"{unix:group}": "several", "{unix:path}": "no part of a name", "{kube:ns}": `type "kube"`, "{unix:name}": "unix:name",
		"{agent:unix:user}/{unix:uid}": "leave out agent", "{k8s_psat:cluster}": "write {agent:k8s_psat:cluster}",
	} {
		resp, err := w.templates().Create(t.Context(), &templatev1.CreateRequest{Template: &templatev1.Template{SpiffeId: "spiffe://example.org/a/" + pattern, ParentId: "spiffe://example.org/node/a"}})
		must(t, err)
		if warnings := strings.Join(resp.Warnings, "\n"); (want == "") != (warnings == "") || !strings.Contains(warnings, want) {
			t.Errorf("%s: %q, want %q", pattern, warnings, want)
		}
	}
}

func TestInstances(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token("/node/a"))
	made := w.createTemplate(&templatev1.Template{
		SpiffeId: "spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}", ParentId: "spiffe://example.org/node/a", Selectors: []string{"k8s:pod-label:mesh:on"},
		DnsNames: []string{"{k8s:sa}.{k8s:ns}.svc"}, X509SvidTtl: 60, JwtSvidTtl: 30,
	})
	selectors := []string{"k8s:ns:shop", "k8s:pod-label:mesh:on", "k8s:sa:web"}
	right := claim(made, "/ns/shop/sa/web", selectors...)
	resp, err := a.issuance().NewX509SVIDs(ctx, &templatev1.NewX509SVIDsRequest{Requests: []*templatev1.X509Request{{Claim: right, Csr: csr(t, newKey(t), "")}}})
	must(t, err)
	if r := resp.Results[0]; r.Code != 0 {
		t.Fatal(r.Message)
	}
	leaf, err := x509.ParseCertificate(resp.Results[0].CertChain[0])
	must(t, err)
	bundle, _ := w.issuer.Bundle()
	id, _, err := x509svid.Verify([]*x509.Certificate{leaf}, x509bundle.FromX509Authorities(td, bundle.X509Authorities))
	must(t, err)
	if id.Path() != "/ns/shop/sa/web" || !slices.Equal(leaf.DNSNames, []string{"web.shop.svc"}) || time.Until(leaf.NotAfter) > time.Minute {
		t.Errorf("got %s, %v, until %v", id, leaf.DNSNames, leaf.NotAfter)
	}
	token, err := a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: right, Audience: []string{"db"}})
	must(t, err)
	jwt, err := jwtsvid.ParseInsecure(token.Token, []string{"db"})
	must(t, err)
	if jwt.ID != id || time.Until(jwt.Expiry) > 30*time.Second {
		t.Errorf("got %s until %v", jwt.ID, jwt.Expiry)
	}
	for object, serial := range map[string]string{"x509-svid": leaf.SerialNumber.String(), "jwt-svid": jwt.Claims["jti"].(string)} {
		acts := w.issuedThrough(a, object)
		if len(acts) != 1 {
			t.Fatalf("%d acts on %s", len(acts), object)
		}
		details := acts[0].Details
		want := [][2]string{{"template", made.Id}, {"serial", serial}}
		for _, s := range selectors {
			want = append(want, [2]string{"selector", s})
		}
		if acts[0].Actor != a.id.String() || acts[0].ObjectID != id.String() || slices.ContainsFunc(want, func(d [2]string) bool { return !slices.Contains(details, d) }) {
			t.Errorf("on record is %+v", acts[0])
		}
	}

	// Without a record there is no SVID.
	w.refuseActs(func(a identity.Act) bool { return a.Verb == "issued" })
	_, err = a.issuance().NewX509SVIDs(ctx, &templatev1.NewX509SVIDsRequest{Requests: []*templatev1.X509Request{{Claim: right, Csr: csr(t, newKey(t), "")}}})
	wantCode(t, err, codes.Unavailable)
	_, err = a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: right, Audience: []string{"db"}})
	wantCode(t, err, codes.Unavailable)
	w.refuseActs(nil)

	// What is revoked is not issued with a time of before.
	_, err = w.revoking().Revoke(ctx, revokeID(id))
	must(t, err)
	token, err = a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: right, Audience: []string{"db"}})
	must(t, err)
	list, _ := w.issuer.Revocations().Now()
	if jwt, err = jwtsvid.ParseInsecure(token.Token, []string{"db"}); err != nil || list.JWT(jwt.ID, jwt.Claims["jti"].(string), time.Unix(int64(jwt.Claims["iat"].(float64)), 0)) != nil {
		t.Errorf("what was issued after the revocation is revoked (%v)", err)
	}
	// A ban ends it.
	_, err = w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: entryID(a.id)})
	must(t, err)
	_, err = a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: right, Audience: []string{"db"}})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)
}

func entryID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// Everything that an agent can say and that is not so.
func TestFalseClaims(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	made := w.createTemplate(&templatev1.Template{
		SpiffeId: "spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}", ParentId: "spiffe://example.org/node/a", Selectors: []string{"k8s:pod-label:mesh:on"}, DnsNames: []string{"{k8s:sa}.svc"},
	})
	ofB := userTemplate()
	ofB.ParentId = "spiffe://example.org/node/b"
	ofB = w.createTemplate(ofB)
	taken := w.create(entry("/ns/shop/sa/boss", "/node/elsewhere", "uid:1"))[0]
	const ns, sa, mesh = "k8s:ns:shop", "k8s:sa:web", "k8s:pod-label:mesh:on"
	var claims []*templatev1.Claim
	var wanted []codes.Code
	var says []string
	add := func(code codes.Code, text string, c *templatev1.Claim) {
		claims, wanted, says = append(claims, c), append(wanted, code), append(says, text)
	}
	add(codes.OK, "", claim(made, "/ns/shop/sa/web", ns, sa, mesh))
	add(codes.InvalidArgument, "template_id is missing", nil)
	add(codes.InvalidArgument, "template_id is missing", claim(&templatev1.Template{}, "/ns/shop/sa/web", ns, sa, mesh))
	add(codes.NotFound, "not authorized", claim(&templatev1.Template{Id: "?"}, "/ns/shop/sa/web", ns, sa, mesh))
	add(codes.NotFound, "not authorized", claim(ofB, "/user/anna", "unix:user:anna"))
	add(codes.NotFound, "not authorized", claim(&templatev1.Template{Id: taken.Id}, "/ns/shop/sa/boss", ns, "k8s:sa:boss", mesh))
	add(codes.InvalidArgument, "is missing", claim(made, "/ns/shop/sa/web", ns, sa))
	add(codes.InvalidArgument, "is missing", claim(made, "/ns/shop/sa/web", ns, mesh))
	add(codes.InvalidArgument, "is missing", claim(made, "/ns/shop/sa/web"))
	add(codes.InvalidArgument, "selectors[2]: the template does not ask for it", claim(made, "/ns/shop/sa/web", ns, sa, "k8s:pod-label:mesh:off"))
	add(codes.InvalidArgument, "selectors[3]: the template does not ask for it", claim(made, "/ns/shop/sa/web", ns, sa, mesh, "unix:uid:0"))
	add(codes.InvalidArgument, `by these selectors it is "spiffe://example.org/ns/shop/sa/web"`, claim(made, "/ns/shop/sa/admin", ns, sa, mesh))
	add(codes.InvalidArgument, "by these selectors it is", claim(made, "", ns, sa, mesh))
	add(codes.InvalidArgument, "ambiguous", claim(made, "/ns/shop/sa/web", ns, sa, "k8s:sa:db", mesh))
	add(codes.InvalidArgument, "malformed", claim(made, "/ns/shop/sa/web", "k8s:ns:shop/x", sa, mesh))
	add(codes.InvalidArgument, "malformed", claim(made, "/ns/shop/sa/web", "k8s:ns:..", sa, mesh))
	add(codes.InvalidArgument, "malformed", claim(made, "/ns/shop/sa/Web", ns, "k8s:sa:Web", mesh)) // not in a DNS name
	add(codes.InvalidArgument, "empty", claim(made, "/ns/shop/sa/", ns, "k8s:sa:", mesh))
	add(codes.InvalidArgument, "there are 65", claim(made, "/ns/shop/sa/web", slices.Repeat([]string{ns}, 65)...))
	add(codes.AlreadyExists, "an entry gives", claim(made, "/ns/shop/sa/boss", ns, "k8s:sa:boss", mesh))
	req := &templatev1.NewX509SVIDsRequest{}
	for _, c := range claims {
		req.Requests = append(req.Requests, &templatev1.X509Request{Claim: c, Csr: csr(t, newKey(t), "")})
	}
	req.Requests = append(req.Requests, &templatev1.X509Request{Claim: claims[0], Csr: csr(t, newKey(t), "spiffe://example.org/ns/shop/sa/boss")})
	wanted, says = append(wanted, codes.InvalidArgument), append(says, "csr asks for")
	before := w.issuer.TemplateRefusals(template.Ambiguous)
	resp, err := a.issuance().NewX509SVIDs(ctx, req)
	must(t, err)
	for n, r := range resp.Results {
		if codes.Code(r.Code) != wanted[n] || !strings.Contains(r.Message, says[n]) || (len(r.CertChain) > 0) != (wanted[n] == codes.OK) {
			t.Errorf("claim %d: %v, want %v %q", n, r, wanted[n], says[n])
		}
	}
	for n, c := range claims {
		_, err := a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: c, Audience: []string{"x"}})
		wantCode(t, err, wanted[n])
	}
	if n := w.issuer.TemplateRefusals(template.Ambiguous) - before; n != 2 {
		t.Errorf("%d ambiguous claims are counted, want 2", n)
	}
	if n := len(w.issuedThrough(a, "x509-svid")) + len(w.issuedThrough(a, "jwt-svid")); n != 2 {
		t.Errorf("%d SVIDs are on record, want 2", n)
	}
	// Of another agent the same is refused, and entries are no templates.
	_, err = b.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: claims[0], Audience: []string{"x"}})
	wantCode(t, err, codes.NotFound)
	for _, n := range []int{0, 501} {
		_, err = a.issuance().NewX509SVIDs(ctx, &templatev1.NewX509SVIDsRequest{Requests: make([]*templatev1.X509Request, n)})
		wantCode(t, err, codes.InvalidArgument)
	}
	// An entry that is made later takes the name away.
	w.create(entry("/ns/shop/sa/web", "/node/b", "uid:1"))
	_, err = a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: claims[0], Audience: []string{"x"}})
	wantCode(t, err, codes.AlreadyExists)
}

// What is of the agent's own node the issuer knows, and no agent can claim.
func TestAgentVariables(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.join(w.token("")), w.join(w.token(""))
	node := func(value string) registry.Selector {
		return registry.Selector{Type: "k8s_psat", Value: "agent_node_name:" + value}
	}
	cluster := registry.Selector{Type: "k8s_psat", Value: "cluster:c"}
	a.attested(node("n-1"), cluster)
	b.attested(node("n-2"), cluster)
	w.create(&types.Entry{SpiffeId: id("/nodes"), ParentId: id("/spire/server"), Selectors: []*types.Selector{{Type: "k8s_psat", Value: "cluster:c"}}})
	made := w.createTemplate(&templatev1.Template{SpiffeId: "spiffe://example.org/node/{agent:k8s_psat:agent_node_name}/user/{unix:user}", ParentId: "spiffe://example.org/nodes"})
	told := a.authorized()
	if len(told) != 1 || told[0].SpiffeId != "spiffe://example.org/node/n-1/user/{unix:user}" || told[0].ParentId != "" {
		t.Fatalf("told %v", told)
	}
	jwt := func(a *agent, id string, selectors ...string) error {
		_, err := a.issuance().NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: claim(made, id, selectors...), Audience: []string{"x"}})
		return err
	}
	must(t, jwt(a, "/node/n-1/user/anna", "unix:user:anna"))
	wantCode(t, jwt(a, "/node/n-2/user/anna", "unix:user:anna"), codes.InvalidArgument)
	wantCode(t, jwt(a, "/node/n-2/user/anna", "unix:user:anna", "k8s_psat:agent_node_name:n-2"), codes.InvalidArgument)
	must(t, jwt(b, "/node/n-2/user/anna", "unix:user:anna"))

	// A node that is attested as another has the names of that one, and is told.
	watch, _ := startWatch(t, a)
	a.attested(node("n-3"), cluster)
	_, err := watch.Recv()
	must(t, err)
	wantCode(t, jwt(a, "/node/n-1/user/anna", "unix:user:anna"), codes.InvalidArgument)
	must(t, jwt(a, "/node/n-3/user/anna", "unix:user:anna"))
	for reason, selectors := range map[template.Reason][]registry.Selector{
		template.Missing: {cluster}, template.Ambiguous: {node("n-1"), node("n-2"), cluster}, template.Malformed: {node("a/b"), cluster},
	} {
		a.attested(selectors...)
		before := w.issuer.TemplateRefusals(reason)
		wantCode(t, jwt(a, "/node/n-1/user/anna", "unix:user:anna"), codes.FailedPrecondition)
		if told := a.authorized(); len(told) != 0 {
			t.Errorf("%s: told of %v", reason, told)
		}
		if n := w.issuer.TemplateRefusals(reason) - before; n != 2 {
			t.Errorf("%s is counted %d times, want 2", reason, n)
		}
	}
}

// No method of SPIRE's API speaks of templates, and the agents that they are for
// are told of changes, no others.
func TestWhoSeesTemplates(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	watchA, _ := startWatch(t, a)
	watchB, _ := startWatch(t, b)
	next := func(watch watchv1.EntryWatch_WatchClient) {
		t.Helper()
		_, err := watch.Recv()
		must(t, err)
	}
	made := w.createTemplate(userTemplate())
	next(watchA)
	if got := a.authorized(); len(got) != 1 || got[0].Id != made.Id || got[0].SpiffeId != made.SpiffeId || len(b.authorized()) != 0 {
		t.Errorf("A is told of %v", got)
	}
	listed, err := w.entries().ListEntries(ctx, &entryv1.ListEntriesRequest{})
	must(t, err)
	counted, err := w.entries().CountEntries(ctx, &entryv1.CountEntriesRequest{})
	must(t, err)
	got, err := a.entries().GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
	must(t, err)
	sync, err := a.entries().SyncAuthorizedEntries(ctx)
	must(t, err)
	must(t, sync.Send(&entryv1.SyncAuthorizedEntriesRequest{}))
	synced, err := sync.Recv()
	must(t, err)
	// The two aliases of the nodes, each of its agent.
	if len(listed.Entries) != 2 || counted.Count != 2 || len(got.Entries) != 1 || len(synced.Entries) != 1 {
		t.Errorf("listed %v, counted %d, authorized %v, synced %v", listed.Entries, counted.Count, got.Entries, synced)
	}
	_, err = w.entries().GetEntry(ctx, &entryv1.GetEntryRequest{Id: made.Id})
	wantCode(t, err, codes.NotFound)
	moved := proto.CloneOf(made)
	moved.ParentId = "spiffe://example.org/node/b"
	_, err = w.templates().Update(ctx, &templatev1.UpdateRequest{Template: moved})
	must(t, err)
	next(watchA)
	next(watchB)
	if len(a.authorized()) != 0 || len(b.authorized()) != 1 {
		t.Error("it did not move")
	}
	_, err = w.templates().Delete(ctx, &templatev1.DeleteRequest{Id: made.Id})
	must(t, err)
	next(watchB)
}

// Who has what there is is told so in a few bytes; whatever an agent would get
// otherwise, by a change of the template or of its node, is sent.
func TestTemplatesByDigest(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	none := a.authorizedSince(nil)
	if len(none.Digest) == 0 || len(none.Templates) != 0 || none.Unchanged || !a.authorizedSince(none.Digest).Unchanged {
		t.Errorf("without any: %v", none)
	}
	asked := &templatev1.Template{SpiffeId: "spiffe://example.org/n/{agent:k8s_psat:agent_node_name}/user/{unix:user}", ParentId: "spiffe://example.org/node/a"}
	made := w.createTemplate(asked)
	digest := none.Digest
	changed := func(what string, templates int) {
		t.Helper()
		got := a.authorizedSince(digest)
		if got.Unchanged || len(got.Templates) != templates || bytes.Equal(got.Digest, digest) {
			t.Errorf("%s: %v", what, got)
		}
		digest = got.Digest
		if again := a.authorizedSince(digest); !again.Unchanged || len(again.Templates) != 0 || !bytes.Equal(again.Digest, digest) {
			t.Errorf("%s, asked again: %v", what, again)
		}
	}
	node := func(name string) registry.Selector {
		return registry.Selector{Type: "k8s_psat", Value: "agent_node_name:" + name}
	}
	alias := w.store.Index().Agent(a.id).Selectors
	a.attested(append(slices.Clone(alias), node("one"))...)
	changed("made", 1)
	a.attested(append(slices.Clone(alias), node("two"))...)
	changed("another node", 1)
	made.Hint, made.Revision = "inner", 0
	_, err := w.templates().Update(t.Context(), &templatev1.UpdateRequest{Template: made})
	must(t, err)
	changed("updated", 1)
	w.end()
	w.begin()
	a.conn.Close()
	a.conn = w.dial(a)
	if !a.authorizedSince(digest).Unchanged {
		t.Error("another process has another digest for the same")
	}
	_, err = w.templates().Delete(t.Context(), &templatev1.DeleteRequest{Id: made.Id})
	must(t, err)
	changed("deleted", 0)
}

// A list that is longer than one message comes whole.
func TestManyTemplates(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	var selectors []string
	for n := range 16 {
		selectors = append(selectors, fmt.Sprintf("unix:gid:%d-%s", n, strings.Repeat("x", 230)))
	}
	must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		for n := range 60 {
			id, err := template.ParseSPIFFEID(td, fmt.Sprintf("spiffe://example.org/t%d/{unix:user}", n))
			if err != nil {
				return err
			}
			r := registry.Template{Rule: template.Rule{SPIFFEID: id, Selectors: selectors}, ParentID: spiffeid.RequireFromPath(td, "/node/a"), Hint: strings.Repeat("h", 100<<10)}
			if _, err := tx.CreateTemplate(r); err != nil {
				return err
			}
		}
		return nil
	}))
	if n := len(a.authorized()); n != 60 {
		t.Errorf("told of %d templates, want 60", n)
	}
}

// The bundles that templates need come with the others.
func TestSyncBundlesOfTemplates(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		for _, name := range []string{"a.org", "b.org", "c.org", "d.org", "x.org"} {
			if err := tx.PutFederatedBundle(registry.FederatedBundle{TrustDomain: spiffeid.RequireTrustDomainFromString(name)}); err != nil {
				return err
			}
		}
		return nil
	}))
	e := entry("/svc/web", "/node/a", "uid:1")
	e.FederatesWith = []string{"b.org", "d.org"}
	w.create(e)
	m := userTemplate()
	m.FederatesWith = []string{"a.org", "b.org", "c.org"}
	w.createTemplate(m)
	m.ParentId, m.FederatesWith = "spiffe://example.org/node/elsewhere", []string{"x.org"}
	w.createTemplate(m)
	must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		return tx.DeleteFederatedBundle(spiffeid.RequireTrustDomainFromString("c.org"))
	}))
	for range 2 { // the second time, what is remembered of the entries
		stream, err := a.watch().Sync(t.Context(), &watchv1.SyncRequest{Listed: true})
		must(t, err)
		reply, err := stream.Recv()
		must(t, err)
		var names []string
		for _, b := range reply.Federated {
			if b.Bundle != nil {
				names = append(names, b.TrustDomain)
			}
		}
		if !slices.Equal(names, []string{"a.org", "b.org", "d.org"}) {
			t.Errorf("told of %v", names)
		}
	}
}

// A federated bundle that templates need is not deleted under them.
func TestBundleOfTemplates(t *testing.T) {
	for mode, want := range map[bundlev1.BatchDeleteFederatedBundleRequest_Mode]codes.Code{
		bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT:   codes.FailedPrecondition,
		bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE: codes.OK,
		bundlev1.BatchDeleteFederatedBundleRequest_DELETE:     codes.OK,
	} {
		w := newWorld(t)
		a := w.join(w.token("/node/a"))
		m := userTemplate()
		m.FederatesWith = []string{"other.org", "third.org"}
		w.setBundles(foreignBundle(t, "other.org"), foreignBundle(t, "third.org"))
		made := w.createTemplate(m)
		watch, _ := startWatch(t, a)
		next := foreignBundle(t, "other.org")
		next.SequenceNumber++
		w.setBundles(next)
		_, err := watch.Recv() // the agent needs it
		must(t, err)
		resp, err := w.bundles().BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"other.org"}, Mode: mode})
		must(t, err)
		if got := codes.Code(resp.Results[0].Status.Code); got != want {
			t.Errorf("%v: %v", mode, resp.Results[0].Status)
		}
		now := w.store.Index().Template(made.Id)
		switch mode {
		case bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT:
			if len(now.FederatesWith) != 2 {
				t.Errorf("%v: %+v", mode, now)
			}
		case bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE:
			if !slices.Equal(now.FederatesWith, []string{"third.org"}) || len(w.did("template", "updated")) != 1 {
				t.Errorf("%v: %+v", mode, now)
			}
		default:
			if now != nil || len(w.did("template", "deleted")) != 1 {
				t.Errorf("%v: it is still there", mode)
			}
		}
	}
}

// The limit on signatures holds for instances too.
func TestInstancesAreLimited(t *testing.T) {
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.SignPerSecond = 0.001 })
	a := w.join(w.token("/node/a"))
	made := w.createTemplate(userTemplate())
	ask := func() error {
		_, err := a.issuance().NewJWTSVID(t.Context(), &templatev1.NewJWTSVIDRequest{Claim: claim(made, "/user/anna", "unix:user:anna"), Audience: []string{"x"}})
		return err
	}
	must(t, ask())
	wantCode(t, ask(), codes.ResourceExhausted)
}

// One registration, 100,000 workloads: the issuer keeps nothing of any of them.
func TestHundredThousandInstances(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token("/node/a"))
	made := w.createTemplate(userTemplate())
	request := csr(t, newKey(t), "")
	sign := func(first, n int) {
		req := &templatev1.NewX509SVIDsRequest{}
		for i := range n {
			user := fmt.Sprint("u", first+i)
			req.Requests = append(req.Requests, &templatev1.X509Request{Claim: claim(made, "/user/"+user, "unix:user:"+user), Csr: request})
		}
		resp, err := a.issuance().NewX509SVIDs(ctx, req)
		must(t, err)
		for _, r := range resp.Results {
			if r.Code != 0 {
				t.Fatal(r.Message)
			}
		}
	}
	objects := func() uint64 {
		w.mu.Lock()
		w.acts = nil // the test's own
		w.mu.Unlock()
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapObjects
	}
	sign(0, 500)
	before, revision := objects(), made.Revision
	for n := range 4 {
		sign(500*n, 500)
	}
	for n := range 100_000 {
		user := fmt.Sprint("v", n)
		got, err := w.issuer.Claimed(ctx, a.id, claim(made, "/user/"+user, "unix:user:"+user))
		must(t, err)
		if got.Path() != "/user/"+user {
			t.Fatalf("%s is %s", user, got)
		}
	}
	// One object for each would be four times that.
	if after := objects(); after > before+25_000 {
		t.Errorf("%d objects were alive before, %d after 100,000 instances", before, after)
	}
	x := w.store.Index()
	if now, _ := x.Revision(); now != uint64(revision) || len(x.Templates()) != 1 || len(x.Entries()) != 1 {
		t.Errorf("at revision %d there are %d templates and %d entries", now, len(x.Templates()), len(x.Entries()))
	}
}

package issuer_test

import (
	"strings"
	"testing"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
)

func (w *world) authorities() localauthorityv1.LocalAuthorityClient {
	return localauthorityv1.NewLocalAuthorityClient(w.admin)
}

// An X.509 authority by hand, as the CLI of SPIRE goes about it, and what
// everybody else sees of it.
func TestX509AuthorityByHand(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	own, err := w.issuer.SelfSource(identity.ServerID(td))
	must(t, err)
	defer own.Close()
	before, err := own.GetX509SVID()
	must(t, err)

	state, err := w.authorities().GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	must(t, err)
	old := state.Active.AuthorityId
	if old != ca.KeyID(before.Certificates[0].AuthorityKeyId) || state.Active.ExpiresAt == 0 || state.Prepared != nil || state.Old != nil {
		t.Errorf("at first: %v", state)
	}
	prepared, err := w.authorities().PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
	must(t, err)
	next := prepared.PreparedAuthority.AuthorityId
	_, err = w.authorities().TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
	wantCode(t, err, codes.InvalidArgument)
	activated, err := w.authorities().ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: strings.ToUpper(next)})
	must(t, err)
	if activated.ActivatedAuthority.AuthorityId != next || activated.ActivatedAuthority.ExpiresAt != prepared.PreparedAuthority.ExpiresAt {
		t.Errorf("activated %v", activated)
	}
	_, err = w.authorities().RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old})
	wantCode(t, err, codes.InvalidArgument)

	tainted, err := w.authorities().TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
	must(t, err)
	if tainted.TaintedAuthority.AuthorityId != old {
		t.Errorf("tainted %v", tainted)
	}
	if got := w.taints(); got != "x509 "+old {
		t.Errorf("the bundle taints %q", got)
	}
	state, err = w.authorities().GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	must(t, err)
	if state.Active.AuthorityId != next || state.Prepared != nil || state.Old.AuthorityId != old {
		t.Errorf("after: %v", state)
	}
	// The issuer's own SVIDs are replaced before anybody else's.
	after, err := own.GetX509SVID()
	must(t, err)
	if ca.KeyID(after.Certificates[0].AuthorityKeyId) != next {
		t.Error("the control plane kept its SVID under the tainted authority")
	}
	if again, _ := own.GetX509SVID(); again != after {
		t.Error("and makes another at each look")
	}

	_, err = w.authorities().RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old})
	must(t, err)
	bundle, err := w.bundles().GetBundle(ctx, &bundlev1.GetBundleRequest{})
	must(t, err)
	if len(bundle.X509Authorities) != 1 || w.taints() != "" {
		t.Errorf("%d authorities after the revocation, tainted: %q", len(bundle.X509Authorities), w.taints())
	}
	for _, verb := range []string{"tainted", "revoked"} {
		if acts := w.did("x509-authority", verb); len(acts) != 1 || acts[0].Actor != "unix:uid:1000" {
			t.Errorf("%s on record: %+v", verb, acts)
		}
	}
}

// taints is what the bundle on the wire says.
func (w *world) taints() string {
	w.t.Helper()
	b, err := w.bundles().GetBundle(w.t.Context(), &bundlev1.GetBundleRequest{})
	must(w.t, err)
	var list []string
	for _, a := range b.X509Authorities {
		if a.Tainted {
			list = append(list, "x509 "+keyIDOf(w.t, a.Asn1))
		}
	}
	for _, a := range b.JwtAuthorities {
		if a.Tainted {
			list = append(list, "jwt "+a.KeyId)
		}
	}
	return strings.Join(list, ", ")
}

func TestJWTAuthorityByHand(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	state, err := w.authorities().GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
	must(t, err)
	old := state.Active.AuthorityId
	prepared, err := w.authorities().PrepareJWTAuthority(ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
	must(t, err)
	next := prepared.PreparedAuthority.AuthorityId
	_, err = w.authorities().RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: next})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.authorities().ActivateJWTAuthority(ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: next})
	must(t, err)
	_, err = w.authorities().TaintJWTAuthority(ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: old})
	must(t, err)
	if got := w.taints(); got != "jwt "+old {
		t.Errorf("the bundle taints %q", got)
	}
	state, err = w.authorities().GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
	must(t, err)
	if state.Active.AuthorityId != next || state.Old.AuthorityId != old {
		t.Errorf("after: %v", state)
	}
	_, err = w.authorities().RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: old})
	must(t, err)
	b, err := w.bundles().GetBundle(ctx, &bundlev1.GetBundleRequest{})
	must(t, err)
	if len(b.JwtAuthorities) != 1 || b.JwtAuthorities[0].KeyId != next {
		t.Errorf("after the revocation: %v", b.JwtAuthorities)
	}
}

func TestAuthorityRefusals(t *testing.T) {
	w := newWorld(t)
	ctx, c := t.Context(), w.authorities()
	for name, tt := range map[string]struct {
		call func() error
		code codes.Code
		says string
	}{
		"no X.509 ID": {func() error {
			_, err := c.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{})
			return err
		}, codes.InvalidArgument, "authority_id is missing"},
		"no JWT ID": {func() error {
			_, err := c.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{})
			return err
		}, codes.InvalidArgument, "authority_id is missing"},
		"unknown JWT": {func() error {
			_, err := c.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: "x"})
			return err
		}, codes.InvalidArgument, "not one of the JWT authorities"},
		"unknown X.509": {func() error {
			_, err := c.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: "ab"})
			return err
		}, codes.InvalidArgument, "not one of the X.509 authorities"},
		"taint upstream": {func() error {
			_, err := c.TaintX509UpstreamAuthority(ctx, &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: "ab"})
			return err
		}, codes.FailedPrecondition, "no upstream"},
		"revoke upstream": {func() error {
			_, err := c.RevokeX509UpstreamAuthority(ctx, &localauthorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: "ab"})
			return err
		}, codes.FailedPrecondition, "no upstream"},
	} {
		if err := tt.call(); status.Code(err) != tt.code || !strings.Contains(status.Convert(err).Message(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

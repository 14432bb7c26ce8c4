package issuer_test

import (
	"crypto/x509"
	"testing"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/watchv1"
)

// Agents that ask have CRLs: at once, when a serial number is revoked, and for each
// new authority before they are told that there is one; and not for what no CRL can
// say.
func TestWatchCarriesCRLs(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	stream, err := a.watch().Watch(t.Context(), &watchv1.WatchRequest{Revocations: true, Crls: true})
	must(t, err)
	// next is the next message with CRLs, and by serial number how many lists have it.
	next := func() (change *watchv1.Change, lists int, revoked map[string]int) {
		t.Helper()
		for {
			change, err := stream.Recv()
			must(t, err)
			if change.Crls == nil {
				continue
			}
			bundle, _ := w.ca.Bundle()
			revoked = map[string]int{}
			for _, der := range change.Crls.Lists {
				list, err := x509.ParseRevocationList(der)
				must(t, err)
				verified := false
				for _, authority := range bundle.X509Authorities {
					verified = verified || list.CheckSignatureFrom(authority) == nil
				}
				if !verified {
					t.Fatal("a list of nobody's")
				}
				for _, e := range list.RevokedCertificateEntries {
					revoked[e.SerialNumber.String()]++
				}
			}
			return change, len(change.Crls.Lists), revoked
		}
	}
	if _, lists, revoked := next(); lists != 1 || len(revoked) != 0 {
		t.Fatalf("%d lists with %v at the beginning", lists, revoked)
	}
	_, err = w.revoking().Revoke(t.Context(), revokeID(spiffeid.RequireFromString("spiffe://example.org/svc/web")))
	must(t, err)
	_, err = w.revoking().Revoke(t.Context(), revokeSerial("42"))
	must(t, err)
	if change, lists, revoked := next(); lists != 1 || revoked["42"] != 1 || !change.Unchanged {
		t.Errorf("%d lists with %v after a serial number was revoked: %v", lists, revoked, change)
	}
	_, err = localauthorityv1.NewLocalAuthorityClient(w.admin).PrepareX509Authority(t.Context(), &localauthorityv1.PrepareX509AuthorityRequest{})
	must(t, err)
	if change, lists, revoked := next(); lists != 2 || revoked["42"] != 2 || !change.Bundle {
		t.Errorf("%d lists with %v after an authority was prepared: %v", lists, revoked, change)
	}
	// Who does not ask has none.
	other, err := a.watch().Watch(t.Context(), &watchv1.WatchRequest{Revocations: true})
	must(t, err)
	if first, err := other.Recv(); err != nil || first.Crls != nil {
		t.Errorf("%v, %v", first, err)
	}
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/internal/backup"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/internal/writdconf"
)

// Templates come back from a backup as they were then: with all fields, believed by
// their marks, and without what was made, changed or deleted since.
func TestTemplatesSurviveRestore(t *testing.T) {
	lost := newDomain(t, "example.org", func(*writdconf.Config) {})
	create := func(d *domain, pb *templatev1.Template) *templatev1.Template {
		t.Helper()
		resp, err := templatev1.NewAdminClient(d.admin).Create(t.Context(), &templatev1.CreateRequest{Template: pb})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Template
	}
	partner := &types.Bundle{TrustDomain: "partner.org", X509Authorities: []*types.X509Certificate{{Asn1: testpki.New(t, "partner.org").Bundle().X509Authorities()[0].Raw}}}
	if _, err := bundlev1.NewBundleClient(lost.admin).BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{partner}}); err != nil {
		t.Fatal(err)
	}
	full := create(lost, &templatev1.Template{
		Id: "users", SpiffeId: "spiffe://example.org/n/{agent:k8s_psat:agent_node_name}/user/{unix:user}", ParentId: "spiffe://example.org/nodes",
		Selectors: []string{"unix:group:staff"}, X509SvidTtl: 600, JwtSvidTtl: 60, FederatesWith: []string{"partner.org"}, DnsNames: []string{"{unix:user}.example.org"}, Hint: "inner",
	})
	gone := create(lost, &templatev1.Template{Id: "gone", SpiffeId: "spiffe://example.org/group/{unix:group}", ParentId: "spiffe://example.org/nodes"})
	var data bytes.Buffer
	if err := lost.backup(t.Context(), &data, true, new(uint64)); err != nil {
		t.Fatal(err)
	}
	if _, err := templatev1.NewAdminClient(lost.admin).Delete(t.Context(), &templatev1.DeleteRequest{Id: gone.Id}); err != nil {
		t.Fatal(err)
	}
	changed := proto.CloneOf(full)
	changed.Hint = "later"
	if _, err := templatev1.NewAdminClient(lost.admin).Update(t.Context(), &templatev1.UpdateRequest{Template: changed}); err != nil {
		t.Fatal(err)
	}
	create(lost, &templatev1.Template{Id: "later", SpiffeId: "spiffe://example.org/later/{unix:user}", ParentId: "spiffe://example.org/nodes"})

	file, dir := filepath.Join(t.TempDir(), "backup.tar"), filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Restore(file, dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	restored := newDomain(t, "example.org", func(c *writdconf.Config) { c.DataDir = dir })
	admin := templatev1.NewAdminClient(restored.admin)
	list, err := admin.List(t.Context(), &templatev1.ListRequest{})
	if err != nil || len(list.Templates) != 2 || !proto.Equal(list.Templates[0], gone) || !proto.Equal(list.Templates[1], full) {
		t.Fatalf("restored: %v, %v", list, err)
	}
	if n := restored.issuer.RegistryAlarms(); n != 0 {
		t.Errorf("%d alarms: the rows are not believed", n)
	}
	// What was read before it was lost is of another time.
	changed.Revision = full.Revision + 1
	if _, err := admin.Update(t.Context(), &templatev1.UpdateRequest{Template: changed}); status.Code(err) != codes.Aborted {
		t.Errorf("an update of what is not there any more: %v", err)
	}
	changed.Revision = full.Revision
	updated, err := admin.Update(t.Context(), &templatev1.UpdateRequest{Template: changed})
	if err != nil || updated.Template.Hint != "later" || updated.Template.Revision <= full.Revision {
		t.Errorf("it cannot be changed: %v, %v", updated, err)
	}
}

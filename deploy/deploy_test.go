package deploy

import (
	"io/fs"
	"testing"

	"github.com/writ-dev/writ/internal/mesh"
)

func TestShopShowsEveryVerdict(t *testing.T) {
	data, err := fs.ReadFile(Shop(), "mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.Parse("mesh.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Services) < 4 || len(m.Requests) < 12 {
		t.Errorf("%d services, %d requests", len(m.Services), len(m.Requests))
	}
	seen := map[[2]string]int{}
	for _, r := range m.Requests {
		seen[[2]string{m.Service(r.Target).Protocol, r.Expected}]++
	}
	for _, want := range [][2]string{{mesh.HTTP, mesh.Allowed}, {mesh.HTTP, mesh.Denied}, {mesh.HTTP, mesh.Refused}, {mesh.GRPC, mesh.Allowed}, {mesh.GRPC, mesh.Denied}} {
		if seen[want] == 0 {
			t.Errorf("no request for %v", want)
		}
	}
	for _, name := range []string{"README.md", "policy/shop_test.rego"} {
		if _, err := fs.Stat(Shop(), name); err != nil {
			t.Error(err)
		}
	}
}

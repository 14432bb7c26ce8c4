package server_test

import (
	"crypto/ecdsa"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// twoPublishers is a plane where platform has the catalogue and the guardrails,
// and orders its own service.
func twoPublishers(t *testing.T, change func(*server.Config)) (p *plane, platform, orders *ecdsa.PrivateKey) {
	t.Helper()
	platform, orders = newKey(t), newKey(t)
	set, err := owners.New([]owners.Publisher{
		{Name: "platform", Keys: keysOf(t, platform), Packages: []string{"guardrails", "services.payments"}, Data: []string{"writ.services", "writ.break_glass"}},
		{Name: "orders", Keys: keysOf(t, orders), Packages: []string{"services.orders"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p = newPlane(t, func(c *server.Config) {
		c.Publishers = set
		if change != nil {
			change(c)
		}
	})
	return p, platform, orders
}

func (p *plane) pushAs(key *ecdsa.PrivateKey, c bundle.Content) *policyv1.PushResponse {
	p.t.Helper()
	resp, err := p.admin.Push(p.t.Context(), &policyv1.PushRequest{Bundle: p.bundle(c, key)})
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

func ownersOf(keys bundle.Keys) *owners.Set { return owners.One(owners.Default, keys) }

func firstProblem(resp *policyv1.PushResponse) string {
	if len(resp.Problems) == 0 {
		return ""
	}
	q := resp.Problems[0]
	return policy.Problem{File: q.File, Line: int(q.Line), Column: int(q.Column), Code: q.Code, Message: q.Message}.String()
}

// TestPublishersHaveParts: each replaces its own part and nothing else, and
// what is in force is all of them.
func TestPublishersHaveParts(t *testing.T) {
	p, platform, orders := twoPublishers(t, nil)
	all := sources("GET")
	catalogue, ordersPart := bundle.Content{all[0], all[3]}, bundle.Content{all[1], all[2]}

	if got := firstProblem(p.pushAs(orders, ordersPart)); !strings.Contains(got, `service "orders" is not in the catalogue`) {
		t.Errorf("orders before the catalogue: %q", got)
	}
	p.pushAs(platform, catalogue)
	if v := verdict(p.server, request("orders", "GET")); v != policy.Deny {
		t.Errorf("orders without a part: %v", v)
	}
	if resp := p.pushAs(orders, ordersPart); resp.Revision.GetNumber() != 2 || resp.Tests.GetPassed() != 1 {
		t.Fatal(resp)
	}
	if v := verdict(p.server, request("orders", "GET")); v != policy.Allow {
		t.Errorf("orders: %v", v)
	}
	if v := verdict(p.server, request("payments", "GET")); v != policy.Allow {
		t.Errorf("payments after the push of orders: %v", v)
	}
	if resp := p.pushAs(orders, ordersPart); !resp.Unchanged {
		t.Errorf("the same part again: %v", resp)
	}

	for _, tt := range []struct {
		name  string
		files bundle.Content
		want  string
	}{
		{"another's service", bundle.Content{{Path: "x.rego", Content: []byte("package services.payments\n\nallow := true\n")}},
			`x.rego:1:1: owner: package services.payments is not publisher "orders"'s: that takes packages: [services.payments]; publisher "platform" has it`},
		{"another's path", bundle.Content{{Path: "payments.rego", Content: []byte("package services.orders\n\nallow := true\n")}},
			`payments.rego: owner: publisher "platform" has a file of this path`},
		{"a test with another's rules", bundle.Content{{Path: "x_test.rego", Content: []byte("package services.payments\n\nallow := true\n")}},
			"a test file may not define"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := firstProblem(p.pushAs(orders, tt.files)); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}

	// A restart knows the parts, and so does the store.
	p.start()
	stricter := sources("POST")
	if resp := p.pushAs(orders, bundle.Content{stricter[1], stricter[2]}); resp.Revision.GetNumber() != 3 {
		t.Fatal(resp)
	}
	store, err := revisions.Open(t.Context(), p.config.DB)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := store.Parts(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, part := range parts {
		key, err := part.Verify(p.config.Publishers.Keys())
		if err != nil || key != part.KeyID {
			t.Errorf("%s: signed by %q: %v", part.Publisher, key, err)
		}
		for _, f := range part.Content {
			got = append(got, part.Publisher+":"+f.Path)
		}
	}
	if diff := cmp.Diff([]string{"orders:orders.rego", "orders:orders_test.rego", "platform:data.json", "platform:payments.rego"}, got); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}

	// A push without files takes the part away.
	if resp := p.pushAs(orders, nil); resp.Revision.GetNumber() != 4 {
		t.Errorf("no files: %v", resp)
	}
	if v := verdict(p.server, request("orders", "POST")); v != policy.Deny {
		t.Errorf("orders without a part: %v", v)
	}
	if resp, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 3}); err != nil || verdict(p.server, request("orders", "POST")) != policy.Allow {
		t.Errorf("rollback: %v, %v", resp, err)
	}
	list, err := p.admin.List(t.Context(), &policyv1.ListRequest{})
	if err != nil || list.Revisions[0].Publisher != "orders" || list.Revisions[4].Publisher != "platform" {
		t.Errorf("list: %v, %v", list, err)
	}
}

// TestNewOwners: what the only publisher had goes over to those who own it now,
// with their first push, and nothing is lost on the way.
func TestNewOwners(t *testing.T) {
	p, platform, orders := twoPublishers(t, nil)
	now := p.config.Publishers
	p.config.Publishers = owners.One(owners.Default, keysOf(t, p.publisher))
	p.start()
	if resp := p.push(sources("GET")); resp.Revision == nil {
		t.Fatal(resp.Problems)
	}
	p.config.Publishers = now
	p.start()
	if got := firstProblem(p.pushAs(p.publisher, sources("POST"))); !strings.Contains(got, "which is not trusted here") {
		t.Errorf("the old key: %q", got)
	}
	all := sources("POST")
	if resp := p.pushAs(orders, bundle.Content{all[1], all[2]}); resp.Revision == nil {
		t.Fatal(resp.Problems)
	}
	if v := verdict(p.server, request("orders", "GET")); v != policy.Deny {
		t.Errorf("the old rule of orders: %v", v)
	}
	if v := verdict(p.server, request("payments", "GET")); v != policy.Allow {
		t.Errorf("payments, which nobody has pushed since: %v", v)
	}
	if resp := p.pushAs(platform, bundle.Content{all[0]}); resp.Revision == nil {
		t.Fatal(resp.Problems)
	}
	if v := verdict(p.server, request("payments", "GET")); v != policy.Deny {
		t.Errorf("payments after its owner pushed without it: %v", v)
	}
}

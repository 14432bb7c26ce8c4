package opa_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

func adminContent(t *testing.T, rego string) bundle.Content {
	t.Helper()
	c, err := bundle.NewContent([]bundle.File{{Path: "admin.rego", Content: []byte(rego)}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func adminCall(change func(*opa.AdminCall)) opa.AdminCall {
	c := opa.AdminCall{
		CallerID: "spiffe://example.org/team/shop", CallerTrustDomain: "example.org", CallerPath: "/team/shop",
		Method: "/a.B/List", Targets: []string{"/"}, Time: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	if change != nil {
		change(&c)
	}
	return c
}

func TestAdminPolicy(t *testing.T) {
	for _, tt := range []struct {
		name, rego string
		change     func(*opa.AdminCall)
		want       []string
		fails      string
	}{
		{"a boolean", "package admin\nallow if input.rpc == \"List\"", nil, []string{"allow"}, ""},
		{"false", "package admin\ndefault allow := false", nil, nil, ""},
		{"undefined", "package admin\nallow if input.rpc == \"Get\"", nil, nil, ""},
		{"ids", "package admin\nallow contains \"a\" if input.service == \"a.B\"\nallow contains \"b\" if input.caller.path == \"/team/shop\"", nil, []string{"a", "b"}, ""},
		{"a number", "package admin\nallow := 1", nil, nil, "allow is number"},
		{"a request", "package admin\nallow if input.request.entries[0].admin", func(c *opa.AdminCall) {
			c.Request = map[string]any{"entries": []any{map[string]any{"admin": true}}}
		}, []string{"allow"}, ""},
		{"by prefix", "package admin\nimport data.writ.spiffe\nallow if every t in input.targets { spiffe.under(t, \"spiffe://example.org/svc\") }", func(c *opa.AdminCall) {
			c.Targets = []string{"spiffe://example.org/svc/a", "spiffe://example.org/svc2"}
		}, nil, ""},
		{"everything is under no prefix", "package admin\nimport data.writ.spiffe\nallow if every t in input.targets { spiffe.under(t, \"spiffe://example.org/\") }", nil, nil, ""},
		{"no targets", "package admin\nallow := true", func(c *opa.AdminCall) { c.Targets = nil }, nil, "no targets"},
		{"strict", "package admin\nallow if to_number(input.rpc) == 1", nil, nil, "to_number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, problems := opa.CheckAdmin(adminContent(t, tt.rego))
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			got, err := p.Allow(t.Context(), adminCall(tt.change))
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) || got != nil {
					t.Fatalf("got %v, %v, want an error with %q", got, err, tt.fails)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Error(err, diff)
			}
		})
	}
}

func TestAdminPolicyIsChecked(t *testing.T) {
	for _, tt := range []struct{ name, rego, want string }{
		{"a misspelt field", "package admin\nallow if input.caller.ids == \"x\"", `did you mean "id"`},
		{"another package", "package services.web\nallow := true", "an admin policy is package admin"},
		{"no allow", "package admin\npermit := true", "has no rule allow"},
		{"the outside world", "package admin\nallow if http.send({\"url\": \"http://x\", \"method\": \"GET\"}).status_code == 200", "http.send"},
		{"what depends on a destination", "package admin\nimport data.writ.spiffe\nallow if spiffe.ours(input.caller.id)", "ours"},
		{"no Rego", "package admin\nallow {", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, problems := opa.CheckAdmin(adminContent(t, tt.rego))
			if p != nil || len(problems) == 0 || !strings.Contains(problems[0].String(), tt.want) {
				t.Errorf("got %v, want %q", problems, tt.want)
			}
		})
	}
}

// The example is what the how-to shows.
func TestAdminPolicyExample(t *testing.T) {
	content, err := bundle.ReadDir("../../deploy/admin-policy")
	if err != nil {
		t.Fatal(err)
	}
	p, problems := opa.CheckAdmin(content)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	report, err := p.Test(t.Context())
	if err != nil || report.Failed > 0 || report.Passed < 6 {
		t.Errorf("%+v, %v", report, err)
	}
}

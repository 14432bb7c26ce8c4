package owners_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
)

func keys(t testing.TB) bundle.Keys {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.NewKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestNewRefuses(t *testing.T) {
	shared := keys(t)
	two := func(a, b owners.Publisher) []owners.Publisher {
		a.Name, b.Name = "a", "b"
		return []owners.Publisher{a, b}
	}
	type P = owners.Publisher
	for _, tt := range []struct {
		name string
		list []P
		want string // empty: nothing
	}{
		{"apart", two(P{Packages: []string{"services.orders", "shop.orders"}, Data: []string{"writ.services.orders"}},
			P{Packages: []string{"services.orders2", "guardrails.a", "shop.payments"}, Data: []string{"writ.services.payments", "writ.break_glass"}, Rules: []string{"files"}}), ""},
		{"dots in the name of a service", two(P{Packages: []string{"services.a"}}, P{Packages: []string{"services.a.b"}}), ""},
		{"nothing", []P{{Name: "a"}}, `publishers[0].packages: missing: publisher "a" may write nothing`},
		{"no name", []P{{Packages: []string{"*"}}}, "publishers[0].name: want a name"},
		{"taken", []P{{Name: "default", Packages: []string{"shop"}}}, `"default" is taken`},
		{"name twice", []P{{Name: "a", Packages: []string{"x"}}, {Name: "A", Packages: []string{"y"}}}, `publishers[1].name: "A" is there twice`},
		{"key twice", two(P{Packages: []string{"x"}, Keys: shared}, P{Packages: []string{"y"}, Keys: shared}), "is publisher \"a\"'s as well"},
		{"same package", two(P{Packages: []string{"shop"}}, P{Packages: []string{"shop"}}), "publishers[1].packages: shop overlaps with shop of publisher \"a\""},
		{"package above", two(P{Packages: []string{"shop.orders"}}, P{Packages: []string{"shop"}}), "shop overlaps with shop.orders"},
		{"all services", two(P{Packages: []string{"services.orders"}}, P{Packages: []string{"services"}}), "services overlaps with services.orders"},
		{"data in the place of rules", two(P{Packages: []string{"shop"}}, P{Data: []string{"shop.prices"}}), "publishers[1].data: shop.prices overlaps with shop"},
		{"rules of a package", two(P{Packages: []string{"services.orders"}}, P{Rules: []string{"orders"}}), `publishers[1].rules: service "orders" is publisher "a"'s as well`},
		{"package of rules", two(P{Rules: []string{"orders"}}, P{Packages: []string{"services.orders"}}), `may write the rules of service "orders" as well`},
		{"beside everything", two(P{Packages: []string{"*"}}, P{Data: []string{"x"}}), `publisher "a" owns everything`},
		{"writ", []P{{Name: "a", Packages: []string{"writ.lib"}}}, `package "writ" is nobody's`},
		{"system", []P{{Name: "a", Data: []string{"system.log"}}}, "is nobody's"},
		{"all of data.writ", []P{{Name: "a", Data: []string{"writ"}}}, "of data.writ, services"},
		{"outside, beside services", two(P{Data: []string{"writ.services"}}, P{Data: []string{"writ.outside"}}), ""},
		{"outside twice", two(P{Data: []string{"writ.outside"}}, P{Data: []string{"writ.outside"}}), "writ.outside overlaps with writ.outside"},
		{"a part of outside", []P{{Name: "a", Data: []string{"writ.outside.http"}}}, "of data.writ, services"},
		{"rules of YAML as data", []P{{Name: "a", Data: []string{"writ.rules"}}}, "of data.writ, services"},
		{"data of rules", []P{{Name: "a", Data: []string{"services.orders"}}}, "is made of rules"},
		{"empty part", []P{{Name: "a", Packages: []string{"shop..x"}}}, "want names with dots between them"},
		{"empty service", []P{{Name: "a", Packages: []string{"services."}}}, "a name is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := owners.New(tt.list, nil)
			if got := text(err); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// set has orders with its service and shop.orders, and platform with guardrails
// and the rest of the catalogue.
func set(t testing.TB) *owners.Set {
	t.Helper()
	s, err := owners.New([]owners.Publisher{
		{Name: "orders", Packages: []string{"services.orders", "shop"}, Data: []string{"prices.orders", "writ.services.orders"}},
		{Name: "platform", Packages: []string{"guardrails"}, Data: []string{"writ.services.payments", "writ.break_glass"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func content(files ...string) bundle.Content {
	var c bundle.Content
	for i := 0; i < len(files); i += 2 {
		c = append(c, bundle.File{Path: files[i], Content: []byte(files[i+1])})
	}
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}

// TestCheckNarrow: a refusal names no wider grant than what is there takes.
func TestCheckNarrow(t *testing.T) {
	s, err := owners.New([]owners.Publisher{{Name: "a", Packages: []string{"shop"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ data, want string }{
		{`{"services": {"a": {}, "b": {}}}`, "[writ.services]"},
		{`{"services": {"a": {}}}`, "[writ.services.a]"},
		{`{"services": {"a": {}}, "break_glass": {"x": {}}}`, "[writ.break_glass] [writ.services.a]"},
	} {
		var got []string
		for _, p := range s.ByName("a").Check(content("writ/data.json", tt.data)) {
			_, grant, _ := strings.Cut(p.Message, "that takes data: ")
			got = append(got, grant)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %q, want %q", tt.data, got, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string
		want  string
	}{
		{"own service", []string{"a.rego", "package services.orders\n"}, ""},
		{"own service in brackets", []string{"a.rego", "package services[\"orders\"]\n"}, ""},
		{"below an own package", []string{"a.rego", "package shop.orders\n"}, ""},
		{"a service of nearly that name", []string{"a.rego", "package services.orders2\n"}, `a.rego:1:1: owner: package services.orders2 is not publisher "orders"'s: that takes packages: [services.orders2]`},
		{"guardrail", []string{"a.rego", "# x\npackage guardrails.x\n"}, `a.rego:2:1: owner: package guardrails.x is not publisher "orders"'s: that takes packages: [guardrails.x]; publisher "platform" has it`},
		{"tests anywhere", []string{"a_test.rego", "package services.payments\n"}, ""},
		{"broken", []string{"a.rego", "package\n"}, "a.rego:2: parse:"},
		{"deep", []string{"a.rego", "package shop\nx := " + strings.Repeat("[", 1000)}, "a.rego:2:"},
		{"own data", []string{"data.json", `{"prices": {"orders": {"a": 1}}, "writ": {"services": {"orders": {}}}}`}, ""},
		{"own data in a directory", []string{"prices/orders/data.yaml", "a: 1\n"}, ""},
		{"another's service", []string{"data.json", "{\"writ\": {\n\"services\": {\"orders\": {},\n\"payments\": {}}}}"}, `data.json:3:1: owner: data.writ.services.payments is not publisher "orders"'s: that takes data: [writ.services.payments]; publisher "platform" has it`},
		{"break-glass", []string{"writ/break_glass/data.json", `{"x": {}}`}, `data.writ.break_glass is not`},
		{"outside", []string{"writ/data.json", `{"services": {"orders": {}}, "outside": {"opa.runtime": {}}}`}, `writ/data.json:1:30: owner: data.writ.outside is not publisher "orders"'s: that takes data: [writ.outside]`},
		{"nothing to grant", []string{"data.json", `{"writ": {}}`}, `data.writ is nobody's: data.writ has services, break_glass and outside`},
		{"data of a package", []string{"data.json", `{"shop": {"x": 1}}`}, `data.shop is not publisher "orders"'s: that takes data: [shop]`},
		{"above what is owned", []string{"data.json", `{"prices": 1}`}, "data.prices is not"},
		{"empty above what is owned", []string{"data.json", `{"prices": {}}`}, "data.prices is not"},
		{"beside what is owned", []string{"prices/data.json", `{"payments": 2, "orders": 1}`}, "data.prices.payments is not"},
		{"own rules", []string{"rules.yaml", "service: orders\nrules: [{id: a, action: deny, from: any}]\n"}, ""},
		{"another's rules", []string{"rules.yaml", "services: [orders, payments]\nrules: [{id: a, action: deny, from: any}]\n"}, `rules.yaml:1:20: owner: rules of service "payments" are not publisher "orders"'s: that takes rules: [payments]`},
		{"guardrails in YAML", []string{"a/x.rules.yaml", "guardrails: [{id: a, from: any}]\n"}, `that takes packages: [guardrails]; publisher "platform" has it`},
		{"broken rules", []string{"rules.yaml", "service: orders\n"}, "want rules"},
		{"manifest", []string{".manifest", `{"roots": [""]}`}, "a .manifest speaks for the whole policy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range set(t).ByName("orders").Check(content(tt.files...)) {
				got = append(got, p.String())
			}
			all := strings.Join(got, "\n")
			if tt.want == "" && all != "" || !strings.Contains(all, tt.want) {
				t.Errorf("got %q, want %q", all, tt.want)
			}
		})
	}
	if p := owners.One("all", nil).ByName("all").Check(content(".manifest", "{}", "a.rego", "package guardrails.x\n")); p != nil {
		t.Errorf("who owns everything: %v", p)
	}
}

func TestMerge(t *testing.T) {
	part := func(publisher string, files ...string) bundle.Part {
		return bundle.Part{Publisher: publisher, Content: content(files...), Signatures: []byte("s")}
	}
	orders, payments := "package services.orders\n", "package services.payments\n"
	for _, tt := range []struct {
		name   string
		have   []bundle.Part
		pushed bundle.Part
		want   []string // publisher:path, ! where no signature is left, or a problem
	}{
		{"first", nil, part("orders", "a.rego", orders), []string{"orders:a.rego"}},
		{"replaces its own", []bundle.Part{part("orders", "a.rego", orders), part("platform", "g.rego", "package guardrails.g\n")},
			part("orders", "b.rego", orders), []string{"orders:b.rego", "platform:g.rego"}},
		{"without files there is no part", []bundle.Part{part("orders", "a.rego", orders), part("platform", "g.rego", "package guardrails.g\n")},
			part("orders"), []string{"platform:g.rego"}},
		{"a path that is taken", []bundle.Part{part("platform", "a.rego", "package guardrails.g\n")},
			part("orders", "a.rego", orders), []string{`a.rego: owner: publisher "platform" has a file of this path: choose another`}},
		{"takes over what it owns now", []bundle.Part{part("default", "a.rego", orders, "b.rego", payments, "b_test.rego", "package b_test\n")},
			part("orders", "a.rego", orders), []string{"!default:b.rego", "orders:a.rego"}},
		{"takes over from one who still is", []bundle.Part{part("platform", "a.rego", orders, "b.rego", "package guardrails.g\n", "b_test.rego", "package b_test\n")},
			part("orders", "a.rego", orders), []string{"orders:a.rego", "!platform:b.rego", "!platform:b_test.rego"}},
		{"a file that holds both", []bundle.Part{part("default", "data.json", `{"prices": {"orders": 1, "payments": 2}}`)},
			part("orders", "a.rego", orders), []string{`data.json:1:26: owner: came from publisher "default" and holds things of "orders" beside others: ` +
				`data.prices.payments is not publisher "orders"'s: that takes data: [prices.payments]`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content, parts, problems := set(t).ByName("orders").Merge(tt.have, tt.pushed)
			var got []string
			for _, p := range parts {
				mark := ""
				if p.Signatures == nil {
					mark = "!"
				}
				for _, f := range p.Content {
					got = append(got, mark+p.Publisher+":"+f.Path)
				}
			}
			if len(content) != len(got) {
				t.Errorf("%d files in all, %d in parts", len(content), len(got))
			}
			for _, p := range problems {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzCheck: what is said to be o's own is below its grants, whatever the file.
func FuzzCheck(f *testing.F) {
	f.Add("a.rego", []byte("package services.orders\n"))
	f.Add("a.rego", []byte("package services[\"orders\"].x\n"))
	f.Add("data.json", []byte(`{"writ": {"services": {"orders": {}}}}`))
	f.Add("prices/data.yaml", []byte("orders: 1"))
	f.Fuzz(func(t *testing.T, path string, text []byte) {
		c := bundle.Content{{Path: path, Content: text}}
		if len(set(t).ByName("orders").Check(c)) > 0 {
			return
		}
		// Nothing of it can be another's.
		if _, parts, _ := set(t).ByName("platform").Merge([]bundle.Part{{Publisher: "orders", Content: c}}, bundle.Part{Publisher: "platform"}); len(parts) == 0 {
			t.Errorf("%s is taken for orders' and for platform's", path)
		}
	})
}

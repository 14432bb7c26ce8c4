package template

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func TestParseSPIFFEID(t *testing.T) {
	for text, want := range map[string]string{ // part of the error, empty for none
		"spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}":                 "",
		"spiffe://example.org/user/{unix:user}":                        "",
		"spiffe://example.org/user/u-{unix:user}.v1":                   "",
		"spiffe://example.org/app/{k8s:pod-label:example.org/name}":    "",
		"spiffe://example.org/node/{agent:k8s_psat:agent_node_name}":   "",
		"spiffe://example.org/a/" + strings.Repeat("{x:y}/", 16) + "b": "",
		"spiffe://example.org/user/root":                               "",

		"":                                                              "missing",
		"spiffe://example.org/{unix:user}":                              "first segment",
		"spiffe://example.org/u{unix:user}/a":                           "first segment",
		"spiffe://example.org{unix:user}":                               "of our trust domain",
		"spiffe://{unix:user}/a":                                        "of our trust domain",
		"{unix:user}":                                                   "of our trust domain",
		"spiffe://other.org/a/{unix:user}":                              "of our trust domain",
		"spiffe://example.org/spire/agent/{unix:user}":                  "/spire/",
		"spiffe://example.org/writ/{unix:user}":                         "/writ/",
		"spiffe://example.org/a/{unix:user}-{unix:group}":               "same segment",
		"spiffe://example.org/a/{unix:user}{unix:group}":                "same segment",
		"spiffe://example.org/a/{unix:user":                             "brace",
		"spiffe://example.org/a/unix:user}":                             "brace",
		"spiffe://example.org/a/{unix:{user}}":                          "character",
		"spiffe://example.org/a/{}":                                     "{TYPE:KEY}",
		"spiffe://example.org/a/{unix}":                                 "{TYPE:KEY}",
		"spiffe://example.org/a/{unix:}":                                "{TYPE:KEY}",
		"spiffe://example.org/a/{:user}":                                "{TYPE:KEY}",
		"spiffe://example.org/a/{agent:unix}":                           "{TYPE:KEY}",
		"spiffe://example.org/a/{unix:user:}":                           "ends with",
		"spiffe://example.org/a/{unix:us er}":                           "character",
		"spiffe://example.org/a/{unix:usér}":                            "character",
		"spiffe://example.org/a/{unix:user}/":                           "path",
		"spiffe://example.org/a//{unix:user}":                           "path",
		"spiffe://example.org/a/../{unix:user}":                         "path",
		"spiffe://example.org/a/ä{unix:user}":                           "path",
		"spiffe://example.org/a/{unix:user}?b":                          "path",
		"spiffe://example.org/a/" + strings.Repeat("{x:y}/", 17) + "b":  "17 variables",
		"spiffe://example.org/a/" + strings.Repeat("x", 6000) + "{x:y}": "bytes",
	} {
		p, err := ParseSPIFFEID(td, text)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want == "" && p.String() != text:
			t.Errorf("%s reads as %s", text, p)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want an error with %q", text, err, want)
		}
	}
}

func TestParseDNSName(t *testing.T) {
	for text, ok := range map[string]bool{
		"{k8s:sa}.{k8s:ns}.svc": true, "web": true, "web-{k8s:ns}": true, "{k8s:pod-label:a.b/c}.x": true,
		"": false, "{k8s:sa}{k8s:ns}": false, "{k8s:sa}-{k8s:ns}.svc": false, "*.{k8s:ns}": false, "a..{k8s:ns}": false,
		"-{k8s:ns}": false, "{k8s:ns}.": false, "{k8s:ns}/a": false,
	} {
		if _, err := ParseDNSName(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func rule(t testing.TB, id string, dns []string, required ...string) *Rule {
	t.Helper()
	p, err := ParseSPIFFEID(td, id)
	if err != nil {
		t.Fatal(err)
	}
	r := &Rule{SPIFFEID: p, Selectors: required}
	for _, text := range dns {
		p, err := ParseDNSName(text)
		if err != nil {
			t.Fatal(err)
		}
		r.DNSNames = append(r.DNSNames, p)
	}
	slices.Sort(r.Selectors)
	return r
}

func TestResolve(t *testing.T) {
	r := rule(t, "spiffe://example.org/ns/{k8s:ns}/sa/v-{k8s:sa}", []string{"{k8s:sa}.{k8s:ns}.svc"}, "k8s:pod-label:mesh:on")
	in, err := r.Resolve([]string{"unix:uid:0", "k8s:sa:web", "k8s:pod-label:mesh:on", "k8s:ns:shop", "k8s:sa:web", "k8s:nsx:other"})
	if err != nil {
		t.Fatal(err)
	}
	want := Instance{
		ID: spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/v-web"), DNSNames: []string{"web.shop.svc"},
		Selectors: []string{"k8s:ns:shop", "k8s:pod-label:mesh:on", "k8s:sa:web"},
	}
	if diff := cmp.Diff(want, in, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got := r.Kinds(); !slices.Equal(got, []string{"k8s:ns", "k8s:pod-label", "k8s:sa"}) {
		t.Errorf("asks for %v", got)
	}
	for s, asked := range map[string]bool{"k8s:ns:x": true, "k8s:ns:": true, "k8s:pod-label:mesh:on": true, "k8s:pod-label:mesh:off": false, "k8s:ns": false, "k8s:nsx:a": false, "": false} {
		if r.AsksFor(s) != asked {
			t.Errorf("asks for %q: %v", s, !asked)
		}
	}
}

func TestNoIdentity(t *testing.T) {
	plain := rule(t, "spiffe://example.org/user/{unix:user}", nil)
	dns := rule(t, "spiffe://example.org/user/{unix:user}", []string{"u-{unix:user}.example"})
	for _, c := range []struct {
		rule      *Rule
		selectors []string
		want      Reason // empty for ErrNoMatch
	}{
		{plain, nil, ""},
		{plain, []string{"unix:users:a", "unix:user", "xunix:user:a"}, ""},
		{plain, []string{"unix:user:a", "unix:user:b"}, Ambiguous},
		{plain, []string{"unix:user:"}, Empty},
		{plain, []string{"unix:user:."}, Malformed},
		{plain, []string{"unix:user:.."}, Malformed},
		{plain, []string{"unix:user:a/b"}, Malformed},
		{plain, []string{"unix:user:a:b"}, Malformed},
		{plain, []string{"unix:user:a%2fb"}, Malformed},
		{plain, []string{"unix:user:ä"}, Malformed},
		{plain, []string{"unix:user:a b"}, Malformed},
		{plain, []string{"unix:user:{unix:uid}"}, Malformed},
		{plain, []string{"unix:user:" + strings.Repeat("a", 256)}, TooLong},
		{dns, []string{"unix:user:Anna"}, Malformed},
		{dns, []string{"unix:user:a.b"}, Malformed},
		{dns, []string{"unix:user:a-"}, Malformed},
		{dns, []string{"unix:user:" + strings.Repeat("a", 62)}, Malformed}, // the label has two more
		{dns, []string{"unix:user:" + strings.Repeat("a", 64)}, TooLong},
		{rule(t, "spiffe://example.org/a/{agent:x:y}", nil), []string{"x:y:z"}, Missing},
		{rule(t, "spiffe://example.org/a/"+strings.Repeat("{x:y}/", 15)+"{x:y}", nil), []string{"x:y:" + strings.Repeat("z", 200)}, TooLong},
		{rule(t, "spiffe://example.org/a/{x:y}", nil, "x:required:1"), []string{"x:y:a", "x:required:2"}, ""},
	} {
		in, err := c.rule.Resolve(c.selectors)
		var refused *RefusedError
		switch {
		case err == nil:
			t.Errorf("%.100q gives %s", c.selectors, in.ID)
		case c.want == "" && !errors.Is(err, ErrNoMatch):
			t.Errorf("%.100q: %v, want no match", c.selectors, err)
		case c.want != "" && (!errors.As(err, &refused) || refused.Reason != c.want):
			t.Errorf("%.100q: %v, want %s", c.selectors, err, c.want)
		}
	}
}

func TestForAgent(t *testing.T) {
	r := rule(t, "spiffe://example.org/node/{agent:k8s_psat:agent_node_name}/user/{unix:user}", []string{"{unix:user}.{agent:k8s_psat:agent_node_name}.internal"})
	own, err := r.ForAgent([]string{"k8s_psat:agent_node_name:n-1", "k8s_psat:cluster:c"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := own.SPIFFEID.String(), "spiffe://example.org/node/n-1/user/{unix:user}"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// What the workload says of it is nothing.
	in, err := own.Resolve([]string{"k8s_psat:agent_node_name:n-2", "unix:user:anna"})
	if err != nil || in.ID.Path() != "/node/n-1/user/anna" || !slices.Equal(in.DNSNames, []string{"anna.n-1.internal"}) || !slices.Equal(in.Selectors, []string{"unix:user:anna"}) {
		t.Errorf("got %+v, %v", in, err)
	}
	// The agent reads what the issuer made of it.
	if again, err := ParseSPIFFEID(td, own.SPIFFEID.String()); err != nil || again.String() != own.SPIFFEID.String() {
		t.Errorf("read again: %v, %v", again, err)
	}
	if got := r.SPIFFEID.Shape(); got != "spiffe://example.org/node/{}/user/{}" {
		t.Errorf("shape %s", got)
	}
	for want, selectors := range map[Reason][]string{
		Missing:   {"k8s_psat:cluster:c"},
		Ambiguous: {"k8s_psat:agent_node_name:a", "k8s_psat:agent_node_name:b"},
		Malformed: {"k8s_psat:agent_node_name:a/b"},
	} {
		var refused *RefusedError
		if _, err := r.ForAgent(selectors); !errors.As(err, &refused) || refused.Reason != want {
			t.Errorf("%v: %v, want %s", selectors, err, want)
		}
	}
}

// FuzzResolve: whatever a pattern and selectors are, a name that comes out is a
// SPIFFE ID below the fixed beginning, names nothing of the control plane's, and
// can have come of these values only.
func FuzzResolve(f *testing.F) {
	f.Add("spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}", "{k8s:sa}.x", "k8s:ns:a\nk8s:sa:b", "x:y:z")
	f.Add("spiffe://example.org/a/v-{x:y}.1/{agent:x:y}", "", "x:y:..", "x:y:n")
	f.Add("spiffe://example.org/app/{k8s:pod-label:a/b}", "{agent:x:y}", "k8s:pod-label:a/b:c", "x:y:z\nx:y:w")
	f.Fuzz(func(t *testing.T, id, dns, workload, node string) {
		p, err := ParseSPIFFEID(td, id)
		if err != nil {
			return
		}
		r := &Rule{SPIFFEID: p}
		if name, err := ParseDNSName(dns); err == nil {
			r.DNSNames = []*Pattern{name}
		}
		if r, err = r.ForAgent(strings.Split(node, "\n")); err != nil {
			return
		}
		if again, err := ParseSPIFFEID(td, r.SPIFFEID.String()); err != nil || again.Shape() != r.SPIFFEID.Shape() {
			t.Fatalf("%q is filled in as %q, which reads as %v, %v", id, r.SPIFFEID, again, err)
		}
		selectors := strings.Split(workload, "\n")
		in, err := r.Resolve(selectors)
		if err != nil {
			return
		}
		if again, err := spiffeid.FromString(in.ID.String()); err != nil || again != in.ID || len(in.ID.String()) > MaxID {
			t.Fatalf("%q is no SPIFFE ID: %v", in.ID, err)
		}
		if !strings.HasPrefix(in.ID.String(), r.SPIFFEID.parts[0].text) || strings.HasPrefix(in.ID.Path()+"/", "/spire/") || strings.HasPrefix(in.ID.Path()+"/", "/writ/") {
			t.Fatalf("%q of %q", in.ID, id)
		}
		// The selectors that it comes from give it too, and can be read back from it.
		again, err := r.Resolve(in.Selectors)
		if err != nil || again.ID != in.ID || !slices.Equal(again.Selectors, in.Selectors) || !slices.Equal(again.DNSNames, in.DNSNames) {
			t.Fatalf("%q again: %+v, %v", in.Selectors, again, err)
		}
		for _, s := range in.Selectors {
			if !slices.Contains(selectors, s) || !r.AsksFor(s) {
				t.Fatalf("%q was made up", s)
			}
		}
		for _, s := range readBack(t, r.SPIFFEID, in.ID.String()) {
			if !slices.Contains(in.Selectors, s) {
				t.Fatalf("%q of %q could have come of %q", in.ID, id, s)
			}
		}
	})
}

// readBack finds the selectors that a name came of, segment by segment, without
// knowing how it was made.
func readBack(t *testing.T, p *Pattern, id string) (selectors []string) {
	var names []string
	for _, v := range p.Variables() {
		names = append(names, v.Selector)
	}
	shape, parts := strings.Split(p.Shape(), "/"), strings.Split(id, "/")
	if len(shape) != len(parts) {
		t.Fatalf("%q has not the shape %q", id, p.Shape())
	}
	for i, segment := range shape {
		before, after, ok := strings.Cut(segment, "{}")
		if !ok {
			continue
		}
		selectors = append(selectors, names[0]+":"+strings.TrimSuffix(strings.TrimPrefix(parts[i], before), after))
		names = names[1:]
	}
	return selectors
}

package equality

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// TestExamples compares the policies that we ship, on inputs made of the words
// that stand in them, so that their rules are met.
func TestExamples(t *testing.T) {
	dirs := []string{"../../deploy/examples/shop/policy"}
	found, err := fs.Glob(os.DirFS("../../rego/examples"), "[0-9]*")
	if err != nil || len(found) < 10 {
		t.Fatalf("examples: %v %v", found, err)
	}
	for _, name := range found {
		dirs = append(dirs, filepath.Join("../../rego/examples", name))
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			c, err := bundle.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			example, _ := os.ReadFile(filepath.Join(dir, "in.json"))
			if filepath.Base(dir) == "policy" {
				c = withCatalogue(c, "web", "catalog", "orders", "payments", "reports")
				example = shopExample(t)
			}
			v := vocabularyOf(c)
			v.example = example
			p, err := newPair(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(uint64(len(dir)), 1))
			seen := map[string]int{}
			var got, want policy.Decision
			for range 10 * *inputs {
				in := v.input(t, r)
				if diff := p.compare(t.Context(), in, &got, &want); diff != "" {
					doc, _ := policy.EncodeInput(in)
					t.Fatalf("topdown (-) and compiled (+) differ:\n%s\ninput: %s\nreport:\n%s", diff, doc, reportText(p.report))
				}
				seen[want.Verdict.String()+" "+want.Tier.String()]++
			}
			t.Log(seen)
			if len(seen) < 2 {
				t.Errorf("all inputs have one outcome: %v", seen)
			}
		})
	}
}

func shopExample(t *testing.T) []byte {
	in := policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest, Source: sourceOf("spiffe://shop.example/svc/web"),
		Destination: policy.Destination{Service: "catalog", ID: "spiffe://shop.example/svc/catalog", Port: 8443},
		Request:     policy.Request{Protocol: policy.HTTP, Method: "GET", Host: "catalog", Path: "/products/42", Segments: []string{"products", "42"}},
		TokenStatus: policy.TokenAbsent, Time: instants[0],
	}
	doc, err := policy.EncodeInput(&in)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func withCatalogue(c bundle.Content, names ...string) bundle.Content {
	var b strings.Builder
	b.WriteString("writ:\n  services:\n")
	for _, name := range names {
		b.WriteString("    " + name + ": {spiffe_ids: [\"spiffe://shop.example/svc/" + name + "\"]}\n")
	}
	c = append(slices.Clone(c), bundle.File{Path: "data.yaml", Content: []byte(b.String())})
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}

// vocabulary is what stands in a policy, by what it may be.
type vocabulary struct {
	ids, paths, words, services, addresses []string
	// example is an input that the policy was written for, if there is one.
	example []byte
}

var (
	quoted   = regexp.MustCompile(`"([^"\\\n]*)"|'([^'\n]*)'`)
	plain    = regexp.MustCompile(`[A-Za-z0-9_./:{}*-]+`)
	catalogs = regexp.MustCompile(`(?m)^ +([a-z0-9-]+): *(\{spiffe_ids|$)`)
)

func vocabularyOf(c bundle.Content) *vocabulary {
	v := &vocabulary{ids: []string{"", "spiffe://example.org/svc/nobody"}, paths: []string{"/", "/nothing"}, addresses: addresses}
	for _, f := range c {
		text := string(f.Content)
		for _, m := range catalogs.FindAllStringSubmatch(text, -1) {
			v.services = append(v.services, m[1])
		}
		var found []string
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			found = append(found, m[1]+m[2])
		}
		if !f.IsModule() {
			found = append(found, plain.FindAllString(text, -1)...)
		}
		for _, s := range found {
			v.add(s)
		}
	}
	return v
}

func (v *vocabulary) add(s string) {
	filled := strings.NewReplacer("{**}", "a/b", "{*}", "one", "**", "x/y", "*", "z").Replace(s)
	switch {
	case strings.HasPrefix(s, "spiffe://"):
		v.ids = append(v.ids, filled, strings.TrimSuffix(filled, "/")+"/svc/web", filled+"/more")
	case strings.HasPrefix(s, "/"):
		v.paths = append(v.paths, filled, filled+"/7", strings.TrimSuffix(filled, "/")+"/7/items")
	case strings.Count(s, ".") == 3 && strings.Contains(s, "/"):
		v.addresses = append(v.addresses, s[:strings.IndexByte(s, '/')])
	}
	v.words = append(v.words, filled)
	if plain.FindString(s) == s && !strings.Contains(s, "/") {
		v.ids = append(v.ids, "spiffe://example.org/svc/"+s)
		v.paths = append(v.paths, "/"+s, "/"+s+"/7", "/"+s+"/7/items", "/x/"+s)
	}
}

// input is an input near the example, or a random one: mostly in the words of
// the policy, or as it is for any.
func (v *vocabulary) input(t *testing.T, r *rand.Rand) *policy.Input {
	in := newInput(r)
	switch n := r.IntN(20); {
	case n == 0:
		return in
	case n < 12 && v.example != nil:
		return v.near(t, r, in)
	}
	in.Destination.Service = pick(r, v.services)
	in.Destination.ID = pick(r, v.ids)
	in.Source = sourceOf(pick(r, v.ids))
	in.Connection.PeerIP, in.Connection.ClientIP = pick(r, v.addresses), pick(r, v.addresses)
	for i := range in.Tokens {
		t := &in.Tokens[i]
		t.Issuer, t.Subject, t.Audience = pick(r, v.words), pick(r, v.words), []string{pick(r, v.words)}
		t.Claims = map[string]any{}
		for range r.IntN(4) {
			t.Claims[pick(r, v.words)] = pick(r, []any{pick(r, v.words), []any{pick(r, v.words), pick(r, v.words)}, pick(r, claims)})
		}
		in.TokenStatus = policy.TokenValid
	}
	if in.Layer != policy.LayerRequest {
		return in
	}
	q := &in.Request
	q.Path = pick(r, v.paths)
	q.Segments, _ = policy.SplitPath(nil, q.Path, true)
	if q.Protocol == policy.GRPC {
		q.GRPCService, q.GRPCMethod = pick(r, v.words), pick(r, v.words)
		q.Path = "/" + q.GRPCService + "/" + q.GRPCMethod
	} else if r.IntN(3) > 0 {
		q.Method = pick(r, []string{"GET", "POST", "DELETE"})
	}
	headers := policy.MapValues{}
	for range r.IntN(5) {
		name := strings.ToLower(pick(r, v.words))
		headers[name] = append(headers[name], pick(r, v.words))
	}
	q.Headers = headers
	return in
}

func sourceOf(id string) policy.Source {
	s := policy.Source{ID: id, Authn: policy.AuthnMTLS}
	if rest, ok := strings.CutPrefix(id, "spiffe://"); ok {
		td, path, _ := strings.Cut(rest, "/")
		s.TrustDomain, s.Path = td, "/"+path
	}
	return s
}

// near is the example with up to three parts of other.
func (v *vocabulary) near(t *testing.T, r *rand.Rand, other *policy.Input) *policy.Input {
	in, err := policy.DecodeInput(v.example)
	if err != nil {
		t.Fatal(err)
	}
	if in.Time.IsZero() {
		in.Time = other.Time
	}
	for range r.IntN(4) {
		switch r.IntN(9) {
		case 0:
			in.Source = other.Source
		case 1:
			in.Request.Method = pick(r, methods)
		case 2:
			in.Request.Path = pick(r, v.paths)
			in.Request.Segments, _ = policy.SplitPath(nil, in.Request.Path, true)
		case 3:
			in.Request.Headers = other.Request.Headers
		case 4:
			in.Tokens, in.TokenStatus = other.Tokens, other.TokenStatus
		case 5:
			in.Connection = other.Connection
		case 6:
			in.Time = in.Time.Add(time.Duration(r.Int64N(int64(48*time.Hour))) - 24*time.Hour)
		case 7:
			in.Source = sourceOf(pick(r, v.ids))
		case 8:
			in.Layer = other.Layer
		}
	}
	return in
}

package follow_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/compile"
)

// publisher is one of whom a follower trusts in these tests.
type publisher struct {
	name    string
	key     *ecdsa.PrivateKey
	content bundle.Content
}

func newPublisher(t *testing.T, name string, files ...string) *publisher {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &publisher{name: name, key: key}
	for i := 0; i < len(files); i += 2 {
		p.content = append(p.content, bundle.File{Path: files[i], Content: []byte(files[i+1])})
	}
	return p
}

// part is what the publisher signed.
func (p *publisher) part(t *testing.T) bundle.Part {
	t.Helper()
	signatures, err := p.content.Sign(p.key, bundle.ScopeSources)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.Part{Publisher: p.name, Content: p.content, Signatures: signatures}
}

func (p *publisher) keys(t *testing.T) bundle.Keys {
	t.Helper()
	keys, err := bundle.NewKeys(&p.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// sealed is what a control plane gives out: it holds the decision key, and
// says of any parts that they are a revision.
func (x *fixture) sealed(number uint64, parts ...bundle.Part) []byte {
	x.t.Helper()
	return x.sealedTo(number, false, parts...)
}

// sealedTo is sealed, to be evaluated or not.
func (x *fixture) sealedTo(number uint64, evaluate bool, parts ...bundle.Part) []byte {
	x.t.Helper()
	var files []bundle.File
	for _, p := range parts {
		files = append(files, p.Content...)
	}
	content, err := bundle.NewContent(files)
	if err != nil {
		x.t.Fatal(err)
	}
	src := &bundle.Sources{
		Revision: policy.Revision{Epoch: 1, Number: number, Digest: content.Digest()}, Activated: time.Unix(1, 0), SPIFFEID: orders, Parts: parts, Evaluate: evaluate,
	}
	data, err := src.Seal(x.key)
	if err != nil {
		x.t.Fatal(err)
	}
	return data
}

const guarded = `package guardrails.internal

deny contains "internal" if {
	input.layer == "request"
	input.request.path == "/internal"
}
`

func TestTrustPublisher(t *testing.T) {
	shop := newPublisher(t, "shop",
		"catalogue/data.json", `{}`,
		"orders.rego", "package services.orders\n\nallow := true\n")
	shop.content[0] = bundle.File{Path: "data.json", Content: []byte(`{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`)}
	security := newPublisher(t, "security", "internal.rego", guarded)
	stranger := newPublisher(t, "security", "internal.rego", strings.Replace(guarded, "/internal\"", "/x\"", 1))
	set, err := owners.New([]owners.Publisher{
		{Name: "shop", Keys: shop.keys(t), Packages: []string{"services.orders"}, Data: []string{"writ.services"}},
		{Name: "security", Keys: security.keys(t), Packages: []string{"guardrails"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	x := newFixture(t)
	x.config.Publishers = set
	_, stop := x.run()
	<-x.plane.reports
	if !x.plane.sources.Load() {
		t.Error("it does not ask for sources")
	}

	altered := security.part(t)
	altered.Content = bundle.Content{{Path: "internal.rego", Content: bytes.Replace([]byte(guarded), []byte("internal\"\n"), []byte("internam\"\n"), 1)}}
	added := shop.part(t)
	added.Content = append(bundle.Content{}, added.Content...)
	added.Content = append(added.Content, bundle.File{Path: "x.rego", Content: []byte("package services.orders\n\nallow contains \"x\"\n")})
	unsigned := security.part(t)
	unsigned.Signatures = nil
	// What shop signs outside of what it owns.
	greedy := *shop
	greedy.content = append(bundle.Content{}, shop.content...)
	greedy.content = append(greedy.content, bundle.File{Path: "shop.rego", Content: []byte("package guardrails.shop\n\ndeny_overridable := false\n")})
	foreign := x.sealed(2, shop.part(t), security.part(t))
	other := newFixture(t)
	foreignKey := other.sealed(2, shop.part(t), security.part(t))
	changed := *shop
	changed.content = append(bundle.Content{}, shop.content...)
	changed.content[1] = bundle.File{Path: "orders.rego", Content: []byte("package services.orders\n\nallow if input.request.method == \"GET\"\n")}

	for _, step := range []struct {
		name    string
		data    []byte
		number  uint64
		refused string
	}{
		{"good", x.sealed(5, shop.part(t), security.part(t)), 5, ""},
		{"one byte of a source is another", x.sealed(6, shop.part(t), altered), 5, "internal.rego"},
		{"a part is left out", x.sealed(6, shop.part(t)), 5, `the part of publisher "security" is missing`},
		{"a file is added", x.sealed(6, added, security.part(t)), 5, "x.rego is not covered"},
		{"a part of somebody else", x.sealed(6, shop.part(t), stranger.part(t)), 5, "not trusted here"},
		{"a part nobody signed", x.sealed(6, shop.part(t), unsigned), 5, "is not signed"},
		{"a publisher outside of its own", x.sealed(6, greedy.part(t), security.part(t)), 5, "package guardrails.shop is not"},
		{"one publisher twice", x.sealed(6, shop.part(t), shopTwice(t, shop), security.part(t)), 5, "two parts"},
		{"the slice that the decision key signed", x.slice(1, 6), 5, "policy sources"},
		{"older", foreign, 5, "is not newer than 1.5"},
		{"another decision key", foreignKey, 5, "not trusted here"},
		{"cut off", foreign[:len(foreign)/2], 5, "policy sources"},
		{"newer", x.sealed(7, changed.part(t), security.part(t)), 7, ""},
	} {
		x.plane.slices <- step.data
		r := <-x.plane.reports
		if r.Revision.GetNumber() != step.number || !strings.Contains(r.Refused, step.refused) || (step.refused == "") != (r.Refused == "") {
			t.Errorf("%s: reports %v", step.name, r)
		}
	}
	stop()
	<-x.activated
	last := <-x.activated
	for path, want := range map[string]policy.Verdict{"/": policy.Allow, "/internal": policy.Deny} {
		var out policy.Decision
		last.Decider.Decide(t.Context(), &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest, Destination: policy.Destination{Service: "orders"},
			Request: policy.Request{Protocol: policy.HTTP, Method: "GET", Path: path, ContentLength: -1}, Time: time.Unix(1, 0),
		}, &out)
		if out.Verdict != want {
			t.Errorf("%s: %v %s", path, out.Verdict, out.Reason)
		}
	}

	// What was kept is verified in the same way.
	_, stop = x.run()
	if s := <-x.activated; s.Revision.Number != 7 {
		t.Errorf("kept: %v", s.Revision)
	}
	<-x.plane.reports
	stop()
	less, err := owners.New([]owners.Publisher{{Name: "shop", Keys: shop.keys(t), Packages: []string{"services.orders"}, Data: []string{"writ.services"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	x.config.Publishers = less
	_, stop = x.run()
	if r := <-x.plane.reports; r.Revision != nil {
		t.Errorf("in force without its publisher: %v", r.Revision)
	}
	stop()
	// An optional part may be missing.
	x.config.Publishers, x.config.Optional, x.config.Dir = set, []string{"security"}, t.TempDir()
	_, stop = x.run()
	<-x.plane.reports
	x.plane.slices <- x.sealed(8, shop.part(t))
	if r := <-x.plane.reports; r.Revision.GetNumber() != 8 {
		t.Errorf("without an optional part: %v", r)
	}
	stop()
}

// shopTwice is another part that the same publisher signed.
func shopTwice(t *testing.T, shop *publisher) bundle.Part {
	t.Helper()
	again := *shop
	again.content = bundle.Content{{Path: "old.rego", Content: []byte("package services.orders\n\nallow contains \"old\"\n")}}
	return again.part(t)
}

// FuzzOpenSources: what is not sealed is refused, whatever it is.
func FuzzOpenSources(f *testing.F) {
	f.Add([]byte("envelope"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	keys, err := bundle.NewKeys(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := (&bundle.Sources{Revision: policy.Revision{Epoch: 1, Number: 1}, SPIFFEID: orders}).Seal(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, data []byte) {
		src, err := bundle.OpenSources(data, keys, orders)
		if err == nil && (src.Revision.IsZero() || src.SPIFFEID != orders) {
			t.Errorf("opened %+v", src)
		}
	})
}

// TestTrustPublisherEvaluates what the control plane knows its compiler to get
// wrong, after a restart as well.
func TestTrustPublisherEvaluates(t *testing.T) {
	shop := newPublisher(t, "shop",
		"data.json", `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`,
		"orders.rego", "package services.orders\n\nallow := true\n")
	x := newFixture(t)
	x.config.Publishers = owners.One("shop", shop.keys(t))
	_, stop := x.run()
	<-x.plane.reports
	for _, step := range []struct {
		number   uint64
		evaluate bool
		want     string
	}{{1, false, compile.EngineCompiled}, {2, true, compile.EngineTopdown}} {
		x.plane.slices <- x.sealedTo(step.number, step.evaluate, shop.part(t))
		if r := <-x.plane.reports; r.Revision.GetNumber() != step.number || r.Engine != step.want {
			t.Errorf("reports %v, want %s", r, step.want)
		}
	}
	stop()
	_, stop = x.run()
	if r := <-x.plane.reports; r.Revision.GetNumber() != 2 || r.Engine != compile.EngineTopdown {
		t.Errorf("after a restart: %v", r)
	}
	stop()
}

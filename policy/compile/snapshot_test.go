package compile_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// TestShop: the example is compiled as a whole.
func TestShop(t *testing.T) {
	const dir = "../../deploy/examples/shop/policy"
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	c := content(`-- writ/services/data.json --
{"orders": {"spiffe_ids": ["spiffe://shop.example/svc/orders"]}, "catalog": {"spiffe_ids": ["spiffe://shop.example/svc/catalog"]},
 "payments": {"spiffe_ids": ["spiffe://shop.example/svc/payments"]}, "reports": {"spiffe_ids": ["spiffe://shop.example/svc/reports"]}}
`)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c = append(c, bundle.File{Path: filepath.Base(f), Content: text})
	}
	p, problems := opa.Check(c)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	prog, report, err := compile.Compile(t.Context(), p, compile.Config{})
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	for _, s := range report.Services {
		for _, r := range s.Rules {
			if rules++; r.Result != compile.Compiled {
				t.Errorf("%s: %+v", s.Service, r)
			}
		}
	}
	if rules < 10 {
		t.Errorf("only %d rules", rules)
	}
	s, err := compile.Snapshot(func() (*opa.Program, error) { return nil, errors.New("not needed") }, prog, p.Catalogue().Services, opa.SnapshotConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if engine := s.Decider.(compile.Engine).Engine(); engine != compile.EngineCompiled {
		t.Errorf("engine %s", engine)
	}
}

// TestSameContentSameProgram: byte for byte.
func TestSameContentSameProgram(t *testing.T) {
	archive := catalogue + snippetData
	for i, s := range snippets {
		if s.helpers == "" { // Their names would meet in one package.
			archive += fmt.Sprintf("-- s%d.rego --\npackage services.orders\n\nallow contains \"x%d\" if {\n%s\n}\n", i, i, s.body)
		}
	}
	var first []byte
	for range 3 {
		_, prog, _ := compiled(t, archive)
		if first == nil {
			first = prog.Encode()
		} else if !bytes.Equal(first, prog.Encode()) {
			t.Fatal("the same content compiles to different programs")
		}
	}
}

// inputs are a few of each kind, one field changed at a time.
func inputs() []*policy.Input {
	base := func() *policy.Input {
		return &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest,
			Source:      policy.Source{ID: "ann", TrustDomain: "td", Path: "/root", Authn: policy.AuthnMTLS},
			Destination: policy.Destination{Service: "orders", ID: "spiffe://td/svc/orders", Port: 80},
			Request: policy.Request{Protocol: policy.HTTP, Method: "GET", Host: "a.b.c", Path: "/a/1", Segments: []string{"orders", "1"}, ContentLength: -1,
				Headers: policy.MapValues{"x-a": {"T-1-9", "b"}}, Query: policy.MapValues{}},
			Connection: policy.Connection{PeerIP: "10.1.2.3"},
			Time:       time.Unix(0, 6),
		}
	}
	changes := []func(*policy.Input){
		func(*policy.Input) {},
		func(in *policy.Input) { in.Layer = policy.LayerConnection },
		func(in *policy.Input) { in.Request.Method = "PUT" },
		func(in *policy.Input) { in.Request.Headers = policy.MapValues{} },
		func(in *policy.Input) { in.Request.Headers = policy.MapValues{"x-a": {}} },
		func(in *policy.Input) { in.Request.Headers = policy.MapValues{"x-a": {"none", "T-2", "a"}} },
		func(in *policy.Input) { in.Request.Headers = nil },
		func(in *policy.Input) { in.Request.Segments = []string{"admin", "x", "y"} },
		func(in *policy.Input) { in.Request.Segments = nil },
		func(in *policy.Input) { in.Request.Host = "12" },
		func(in *policy.Input) { in.Request.Host = " A " },
		func(in *policy.Input) { in.Request.Path = "/" },
		func(in *policy.Input) { in.Request.Protocol = policy.GRPC },
		func(in *policy.Input) { in.Source.ID = "a" },
		func(in *policy.Input) { in.Source.ID = "spiffe://td/svc/web" },
		func(in *policy.Input) { in.Source.ID, in.Source.Authn = "eve\xff", policy.AuthnNone },
		func(in *policy.Input) { in.Connection.PeerIP = "192.0.2.1" },
		func(in *policy.Input) { in.Connection.PeerIP = "10.0.0.0/9" },
		func(in *policy.Input) { in.Connection.PeerIP = "" },
		func(in *policy.Input) { in.Destination.Port = 500 },
		func(in *policy.Input) { in.Destination.Service = "nobody" },
		func(in *policy.Input) { in.Time = time.Unix(0, 8) },
		func(in *policy.Input) { in.Time = time.Unix(0, 9) },
	}
	for _, claims := range []map[string]any{
		nil, {"role": "admin", "roles": []any{"x", "admin"}}, {"role": 3.0, "roles": []any{"admin", 3.0}},
		{"role": nil, "roles": map[string]any{"a": "admin"}}, {"role": "x", "roles": "admin"},
	} {
		changes = append(changes, func(in *policy.Input) {
			in.TokenStatus = policy.TokenValid
			in.Tokens = []policy.Token{{Issuer: "idp", Audience: []string{"orders"}, Claims: claims}}
		})
	}
	var all []*policy.Input
	for _, change := range changes {
		in := base()
		change(in)
		all = append(all, in)
	}
	return all
}

// difference is what two deciders do not agree about.
func difference(t *testing.T, a, b policy.Decider) string {
	for _, in := range inputs() {
		var x, y policy.Decision
		a.Decide(t.Context(), in, &x)
		b.Decide(t.Context(), in, &y)
		if diff := cmp.Diff(x, y); diff != "" {
			return fmt.Sprintf("%+v (-topdown +compiled):\n%s", in, diff)
		}
	}
	return ""
}

// TestEqualToTopdown: each snippet as an allow, as a deny, as a boolean, behind
// not, in an else, as a default and in a function.
// Package test/equality does the same for generated policies.
func TestEqualToTopdown(t *testing.T) {
	for _, tt := range snippets {
		t.Run(tt.name, func(t *testing.T) {
			allow := snippetPolicy(tt.body, tt.helpers)
			deny := strings.Replace(allow, `allow contains "x"`, "allow contains \"all\"\n\ndeny contains \"x\"", 1)
			boolean := strings.Replace(allow, `allow contains "x"`, `allow`, 1)
			wrapped := func(body, wrapper string) string {
				return snippetPolicy(body, wrapper+" if {\n"+tt.body+"\n}\n\n"+tt.helpers)
			}
			for _, archive := range []string{
				allow, deny, boolean,
				wrapped("input.source.authn == \"mtls\"\n not wrapped", "wrapped"),
				wrapped("wrapped == \"then\"", "wrapped := \"first\" if {\n input.request.method == \"PUT\"\n} else := \"then\""),
				wrapped("wrapped == \"none\"", "default wrapped := \"none\"\n\nwrapped := \"some\""),
				wrapped("some m in [\"GET\", \"PUT\"]\n not wrapped(m)", "wrapped(m) if m == input.request.method\n\nwrapped(_)"),
				wrapped("every m in {\"GET\", \"PUT\"} { wrapped(m) }", "wrapped(m) if m == input.request.method\n\nwrapped(_)"),
				wrapped("count(wrapped) == 0", "wrapped contains input.source.path"),
				wrapped("input.source.path in wrapped", "wrapped contains input.source.path"),
			} {
				p, prog, _ := compiled(t, archive)
				if diff := difference(t, topdownOf(t, p), snapshotOf(t, p, prog).Decider); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// TestManyConditions: a rule that has as many as are compiled, of which none is
// met and then all but one.
func TestManyConditions(t *testing.T) {
	for _, segments := range []int{21, 22, 43} { // 256, 268 and 520 conditions
		body, met := "", []string(nil)
		for i := range segments {
			for c := 'a'; c < 'm'; c++ {
				body += fmt.Sprintf(" contains(input.request.segments[%d], \"%c\")\n", i, c)
			}
			met = append(met, "abcdefghijklm")
		}
		body += " input.source.id == \"ann\"\n input.request.method == \"GET\"\n input.request.host == \"a.b.c\"\n input.source.authn == \"mtls\"\n"
		p, prog, report := compiled(t, snippetPolicy(body, ""))
		if report.Services[0].Rules[0].Result != compile.Compiled {
			t.Fatalf("%+v", report.Services[0].Rules[0])
		}
		topdown, both := topdownOf(t, p), snapshotOf(t, p, prog).Decider
		if diff := difference(t, topdown, both); diff != "" {
			t.Error(diff)
		}
		for i := -1; i < segments; i++ {
			in := inputs()[0]
			in.Request.Segments = slices.Clone(met)
			if i >= 0 {
				in.Request.Segments[i] = "abcdefghijk"
			}
			var x, y policy.Decision
			topdown.Decide(t.Context(), in, &x)
			both.Decide(t.Context(), in, &y)
			if diff := cmp.Diff(x, y); diff != "" || (y.Verdict == policy.Allow) != (i < 0) {
				t.Errorf("%d segments, without %d: %v %s", segments, i, y.Verdict, diff)
			}
		}
	}
}

func topdownOf(t *testing.T, p *opa.Program) policy.Decider {
	t.Helper()
	s, err := p.Snapshot(opa.SnapshotConfig{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return s.Decider
}

func snapshotOf(t *testing.T, p *opa.Program, prog *program.Program) *policy.Snapshot {
	t.Helper()
	s, err := compile.Snapshot(func() (*opa.Program, error) { return p, nil }, prog, p.Catalogue().Services, opa.SnapshotConfig{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestPlantedDivergence: the comparison sees one wrong atom.
func TestPlantedDivergence(t *testing.T) {
	p, prog, _ := compiled(t, snippetPolicy(`input.request.method == "GET"`, ""))
	atom := &prog.Units[0].Clauses[policy.ServiceAllow][0].Atoms[0]
	atom.Not = !atom.Not
	if difference(t, topdownOf(t, p), snapshotOf(t, p, prog).Decider) == "" {
		t.Error("a negated condition makes no difference")
	}
	p, prog, _ = compiled(t, snippetPolicy(`net.cidr_contains("10.0.0.0/8", input.connection.peer_ip)`, ""))
	clauses := &prog.Units[0].Clauses[policy.ServiceAllow]
	*clauses = (*clauses)[1:] // What asks is first.
	if difference(t, topdownOf(t, p), snapshotOf(t, p, prog).Decider) == "" {
		t.Error("an error that is not asked about makes no difference")
	}
}

// TestSnapshotAsksLate: topdown is made when it is first needed, once.
func TestSnapshotAsksLate(t *testing.T) {
	p, prog, _ := compiled(t, snippetPolicy(`input.request.method == "GET"`, ""))
	var loads atomic.Int32
	failing := errors.New("the disk is gone")
	load := func() (*opa.Program, error) {
		if loads.Add(1) == 1 {
			return nil, failing
		}
		return p, nil
	}
	revision := policy.Revision{Epoch: 1, Number: 2, Digest: p.Digest()}
	s, err := compile.Snapshot(load, prog, p.Catalogue().Services, opa.SnapshotConfig{Revision: revision})
	if err != nil {
		t.Fatal(err)
	}
	in := inputs()[0]
	var out policy.Decision
	s.Decider.Decide(t.Context(), in, &out)
	if loads.Load() != 0 || out.Verdict != policy.Allow || out.Revision != revision {
		t.Errorf("%d loads, %+v", loads.Load(), out)
	}
	in.Destination.Service = "nobody" // Not in the program.
	s.Decider.Decide(t.Context(), in, &out)
	if out.Verdict != policy.Error || out.Tier != policy.Enforcement || out.Revision != revision || !strings.Contains(out.Reason, failing.Error()) {
		t.Errorf("while it does not load: %+v", out)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var out policy.Decision
			s.Decider.Decide(t.Context(), in, &out)
			if out.Verdict != policy.Deny || out.Tier != policy.DefaultDeny || out.Revision != revision {
				t.Errorf("%+v", out)
			}
		})
	}
	all.Wait()
	if loads.Load() != 2 {
		t.Errorf("%d loads, want 2", loads.Load())
	}
	engine := s.Decider.(compile.Engine)
	if engine.Asked() != 9 || engine.Engine() != compile.EngineCompiled {
		t.Errorf("%s, asked %d, want %s, 9", engine.Engine(), engine.Asked(), compile.EngineCompiled)
	}
}

// TestSnapshotAsksEarly: what will be asked is prepared at once.
func TestSnapshotAsksEarly(t *testing.T) {
	p, mixed, _ := compiled(t, snippetPolicy(`net.cidr_contains("10.0.0.0/8", input.connection.peer_ip)`, ""))
	for _, tt := range []struct {
		name string
		prog *program.Program
		want string
	}{{"mixed", mixed, compile.EngineMixed}, {"no program", nil, compile.EngineTopdown}} {
		t.Run(tt.name, func(t *testing.T) {
			failing := errors.New("the disk is gone")
			if _, err := compile.Snapshot(func() (*opa.Program, error) { return nil, failing }, tt.prog, nil, opa.SnapshotConfig{}); !errors.Is(err, failing) {
				t.Errorf("error %v", err)
			}
			s := snapshotOf(t, p, tt.prog)
			if engine := s.Decider.(compile.Engine).Engine(); engine != tt.want {
				t.Errorf("engine %s, want %s", engine, tt.want)
			}
			if len(s.Services) != 1 {
				t.Errorf("services %v", s.Services)
			}
		})
	}
}

// TestOutOfTime: what is not compiled in time is left to topdown.
func TestOutOfTime(t *testing.T) {
	p, err := opa.Load(content(snippetPolicy(`input.request.method == "GET"`, "")))
	if err != nil {
		t.Fatal(err)
	}
	prog, report, err := compile.Compile(t.Context(), p, compile.Config{Timeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	if r := report.Services[0].Rules[0]; r.Result != compile.Topdown || r.Why == "" {
		t.Errorf("%+v", r)
	}
	if diff := difference(t, topdownOf(t, p), snapshotOf(t, p, prog).Decider); diff != "" {
		t.Error(diff)
	}
}

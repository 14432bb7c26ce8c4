package follow_test

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// TestCompiledSlice: a slice's compiled form decides, and one that is not the
// slice's own, or cannot be read, leaves the decision to the sources.
func TestCompiledSlice(t *testing.T) {
	tests := []struct {
		name    string
		program func(*program.Program) []byte
		engine  string
	}{
		{"its own", (*program.Program).Encode, compile.EngineCompiled},
		{"of another content", func(p *program.Program) []byte { p.Digest[0]++; return p.Encode() }, compile.EngineTopdown},
		{"for another service", func(p *program.Program) []byte { p.Units[0].Service = "payments"; return p.Encode() }, compile.EngineTopdown},
		{"of another version", func(*program.Program) []byte { return []byte("from the future") }, compile.EngineTopdown},
		{"none", func(*program.Program) []byte { return nil }, compile.EngineTopdown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := newFixture(t)
			x.run()
			<-x.plane.reports
			x.plane.slices <- x.slice(1, 1, func(s *bundle.Slice) {
				p, err := opa.Load(s.Content)
				if err != nil {
					t.Fatal(err)
				}
				compiled, _, err := compile.Compile(t.Context(), p, compile.Config{})
				if err != nil {
					t.Fatal(err)
				}
				compiled.Digest = s.Revision.Digest
				s.Program = tt.program(compiled)
			})
			snapshot := <-x.activated
			in := &policy.Input{Layer: policy.LayerRequest, Destination: policy.Destination{Service: "orders"}, Request: policy.Request{Protocol: policy.HTTP}, Time: time.Unix(1, 0)}
			var out policy.Decision
			snapshot.Decider.Decide(t.Context(), in, &out)
			if out.Verdict != policy.Allow || out.Revision.Number != 1 {
				t.Errorf("decision: got %+v, want allow by revision 1", out)
			}
			if report := <-x.plane.reports; report.Engine != tt.engine {
				t.Errorf("engine: got %q, want %q", report.Engine, tt.engine)
			}
		})
	}
}

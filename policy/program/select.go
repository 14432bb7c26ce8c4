package program

import (
	"slices"

	"github.com/writ-dev/writ/policy"
)

// Select is the part of p that decides for these services, with the rules that
// it names. Services that p has no unit for are passed over. It shares memory
// with p.
func (p *Program) Select(services []string) *Program {
	cut := &Program{Compiler: p.Compiler, Digest: p.Digest, Reads: p.Reads}
	used := make([]bool, len(p.Rules))
	for _, u := range p.Units {
		if !slices.Contains(services, u.Service) {
			continue
		}
		cut.Units = append(cut.Units, u)
		for _, clauses := range u.Clauses {
			for i := range clauses {
				used[clauses[i].Rule] = true
			}
		}
	}
	renamed := make([]uint32, len(p.Rules))
	for i, rule := range p.Rules {
		if used[i] {
			renamed[i] = uint32(len(cut.Rules))
			cut.Rules = append(cut.Rules, rule)
		}
	}
	for i := range cut.Units {
		u := &cut.Units[i]
		for tier := policy.Guardrail; tier <= policy.ServiceAllow; tier++ {
			u.Clauses[tier] = slices.Clone(u.Clauses[tier])
			for j := range u.Clauses[tier] {
				c := &u.Clauses[tier][j]
				c.Rule = renamed[c.Rule]
			}
		}
	}
	return cut
}

package rules

import "fmt"

// Parts of a rule.
const (
	PartFrom    = "from"
	PartTo      = "to"
	PartWhen    = "when"
	PartExpires = "expires"
)

// Place is where the i-th entry of a part of the rule is written: its line and
// column, or those of the rule where it has no such part.
func (s *Set) Place(r *Rule, part string, i int) (line, column int) {
	for _, f := range s.Files {
		if f.Path != r.File {
			continue
		}
		for key, list := range map[string][]rule{"rules": f.written.Rules, "guardrails": f.written.Guardrails} {
			for n := range list {
				if list[n].ID != r.ID {
					continue
				}
				at := fmt.Sprintf("%s[%d].%s", key, n, part)
				if part != PartExpires {
					at += fmt.Sprintf("[%d]", i)
				}
				if p := place(f.at, at); p.Line >= r.Line {
					return p.Line, p.Column
				}
			}
		}
	}
	return r.Line, r.Column
}

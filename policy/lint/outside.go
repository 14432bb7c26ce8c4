package lint

import (
	"github.com/writ-dev/writ/policy/bundle"
)

// waitsOutside finds calls that wait for somebody else. One in a guardrail, or
// in what a guardrail uses, holds every service's requests up.
func (s *pass) waitsOutside() {
	guarding := map[string]bool{} // places
	for rule := range s.each {
		if !isGuardrail(rule) {
			continue
		}
		for _, r := range s.reach(rule) {
			for _, c := range calls(r) {
				guarding[c.at.String()] = true
			}
		}
	}
	for c := range s.eachCall {
		switch {
		case c.name != bundle.HTTPSend && c.name != bundle.LookupIP:
		case guarding[c.at.String()]:
			s.found(c.at, "%s in a guardrail: every service's requests wait for the answer, and are denied when there is none", c.name)
		default:
			s.found(c.at, "%s: requests wait for the answer, are denied when there is none, and cannot be replayed", c.name)
		}
	}
}

package owners

import (
	"errors"
	"fmt"
	"slices"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// Assemble verifies the parts of a policy against the set and joins them: each
// is signed by a publisher of the set, holds nothing but what that publisher
// owns, and comes once. The part of every publisher must be there but of those
// that are optional: whoever could leave out a part could leave out a guardrail.
func (s *Set) Assemble(parts []bundle.Part, optional ...string) (bundle.Content, error) {
	var files []bundle.File
	given := map[*Owner]bool{}
	for _, p := range parts {
		if p.Signatures == nil {
			return nil, fmt.Errorf("the part of publisher %q is not signed", p.Publisher)
		}
		id, err := p.Verify(s.Keys())
		if err != nil {
			return nil, fmt.Errorf("the part of publisher %q: %w", p.Publisher, err)
		}
		owner := s.ByKey(id)
		if owner == nil {
			return nil, fmt.Errorf("the part of publisher %q is signed by key %s, which is nobody's", p.Publisher, id)
		}
		if given[owner] {
			return nil, fmt.Errorf("two parts are signed by publisher %q", owner.name)
		}
		given[owner] = true
		if problems := owner.Check(p.Content); len(problems) > 0 {
			return nil, policy.Refused(problems)
		}
		files = append(files, p.Content...)
	}
	for _, o := range s.owners {
		if !given[o] && !slices.Contains(optional, o.name) {
			return nil, fmt.Errorf("the part of publisher %q is missing", o.name)
		}
	}
	if len(files) == 0 {
		return nil, errors.New("no part at all")
	}
	return bundle.NewContent(files)
}

package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
)

// Approver is somebody whose signature counts under a proposal.
type Approver struct {
	Name string
	Keys bundle.Keys
}

// approverKeys are the keys of all approvers.
func (s *Server) approverKeys() bundle.Keys {
	keys := bundle.Keys{}
	for _, a := range s.cfg.Approvers {
		maps.Copy(keys, a.Keys)
	}
	return keys
}

// approver is the name of who has the key, empty for nobody.
func (s *Server) approver(keyID string) string {
	for _, a := range s.cfg.Approvers {
		if a.Keys[keyID] != nil {
			return a.Name
		}
	}
	return ""
}

// person is who stands behind the signature of a part: the approver who has
// that key, or the publisher. Empty when nothing was signed.
func (s *Server) person(keyID, publisher string) string {
	switch name := s.approver(keyID); {
	case keyID == "":
		return ""
	case name != "":
		return name
	}
	return publisher
}

// requirement is what a content needs before it may be in force.
type requirement struct {
	// approvals of anybody but its author.
	approvals int
	// glass names who must have signed for each entry that is broken anew.
	glass []bundle.BreakGlass
	// author signed the sources.
	author string
}

// required by cat, whose part is signed by keyID.
func (s *Server) required(cat bundle.Catalogue, keyID, publisher string) requirement {
	r := requirement{approvals: s.cfg.Approvals, author: s.person(keyID, publisher)}
	if len(s.cfg.Approvers) > 0 {
		r.glass = s.brokenAnew(cat, s.cfg.Clock())
	}
	return r
}

func (r requirement) none() bool { return r.approvals == 0 && len(r.glass) == 0 }

// count is how many approvals it takes at least.
func (r requirement) count() int {
	named := map[string]bool{}
	for _, b := range r.glass {
		for _, name := range b.Approvers {
			named[name] = true
		}
	}
	delete(named, r.author)
	return max(r.approvals, len(named))
}

// cannotSign finds a name for which no approver's signature can ever come.
func (s *Server) cannotSign(r requirement) error {
	var names []string
	for _, a := range s.cfg.Approvers {
		names = append(names, a.Name)
	}
	for _, b := range r.glass {
		for _, name := range b.Approvers {
			if name != r.author && !slices.Contains(names, name) {
				return status.Errorf(codes.FailedPrecondition, "break-glass %s names %s, who is no approver here: approvers are %s", b.ID, name, strings.Join(names, ", "))
			}
		}
	}
	return nil
}

func (r requirement) because() []string {
	var why []string
	if r.approvals > 0 {
		why = append(why, fmt.Sprintf("every activation takes %s here", approvalsText(r.approvals)))
	}
	for _, b := range r.glass {
		why = append(why, fmt.Sprintf("break-glass %s takes the signatures of %s", b.ID, strings.Join(b.Approvers, " and ")))
	}
	return why
}

func approvalsText(n int) string {
	if n == 1 {
		return "1 approval"
	}
	return fmt.Sprintf("%d approvals", n)
}

// missing is what approvals, which were verified, leave open; empty for
// nothing.
func (r requirement) missing(approvals []revisions.Approval) []string {
	signed := map[string]bool{}
	for _, a := range approvals {
		signed[a.Approver] = true
	}
	var missing []string
	if n := len(signed); n < r.approvals {
		missing = append(missing, fmt.Sprintf("%d of %s", n, approvalsText(r.approvals)))
	}
	signed[r.author] = true
	delete(signed, "")
	for _, b := range r.glass {
		for _, name := range b.Approvers {
			if !signed[name] {
				missing = append(missing, fmt.Sprintf("break-glass %s names %s, who has not signed", b.ID, name))
			}
		}
	}
	return missing
}

// valid are the approvals of a proposal that still count: by a key that is an
// approver's today, under this very content, and not by its author.
func (s *Server) valid(p revisions.Proposal) []revisions.Approval {
	keys := s.approverKeys()
	var valid []revisions.Approval
	for _, a := range p.Approvals {
		id, err := bundle.VerifyApproval(a.Signature, keys, approved(p))
		if err != nil || s.approver(id) != a.Approver || s.ownApproval(p, id) != nil {
			continue
		}
		if !slices.ContainsFunc(valid, func(o revisions.Approval) bool { return o.Approver == a.Approver }) {
			valid = append(valid, a)
		}
	}
	return valid
}

func approved(p revisions.Proposal) bundle.Approved {
	return bundle.Approved{Proposal: p.Number, Proposed: p.Proposed, Digest: p.Digest}
}

// ownApproval refuses what an author says of the own work.
func (s *Server) ownApproval(p revisions.Proposal, keyID string) error {
	name := s.approver(keyID)
	switch author := s.person(p.KeyID, p.Publisher); {
	case keyID == p.KeyID:
		return fmt.Errorf("key %s signed the sources: an author does not approve the own work", keyID)
	case strings.EqualFold(name, author) || strings.EqualFold(name, p.Publisher):
		return fmt.Errorf("%s is the author: an author does not approve the own work", name)
	}
	return nil
}

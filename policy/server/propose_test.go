package server_test

import (
	"crypto/ecdsa"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// people are approvers with a key each.
type people struct {
	keys      map[string]*ecdsa.PrivateKey
	approvers []server.Approver
}

func newPeople(t *testing.T, names ...string) *people {
	p := &people{keys: map[string]*ecdsa.PrivateKey{}}
	for _, name := range names {
		p.keys[name] = newKey(t)
		p.approvers = append(p.approvers, server.Approver{Name: name, Keys: keysOf(t, p.keys[name])})
	}
	return p
}

func (p *plane) propose(c bundle.Content, key *ecdsa.PrivateKey) *policyv1.Proposal {
	p.t.Helper()
	resp, err := p.admin.Propose(p.t.Context(), &policyv1.ProposeRequest{Bundle: p.bundle(c, key), Message: "m"})
	if err != nil || resp.Proposal == nil {
		p.t.Fatal(resp, err)
	}
	return resp.Proposal
}

func ofProposal(p *policyv1.Proposal) bundle.Approved {
	return bundle.Approved{Proposal: p.Number, Proposed: time.Unix(0, p.Proposed), Digest: [32]byte(p.Digest)}
}

func (p *plane) approve(proposal *policyv1.Proposal, key *ecdsa.PrivateKey) error {
	p.t.Helper()
	signature, err := bundle.SignApproval(key, ofProposal(proposal))
	if err != nil {
		p.t.Fatal(err)
	}
	_, err = p.admin.Approve(p.t.Context(), &policyv1.ApproveRequest{Number: proposal.Number, Signature: signature})
	return err
}

func (p *plane) activate(proposal *policyv1.Proposal) (*policyv1.Revision, error) {
	p.t.Helper()
	resp, err := p.admin.Activate(p.t.Context(), &policyv1.ActivateRequest{Number: proposal.Number})
	return resp.GetRevision(), err
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return status.Convert(err).Message()
}

// TestApprovals: what takes two people takes two people, and the author is
// neither of them.
func TestApprovals(t *testing.T) {
	who := newPeople(t, "ann", "bob", "cy")
	p := newPlane(t, func(c *server.Config) { c.Approvers, c.Approvals = who.approvers, 2 })
	// Ann signs for the publisher as well: with her own key.
	keys := keysOf(t, p.publisher)
	maps.Copy(keys, keysOf(t, who.keys["ann"]))
	p.config.Publishers = ownersOf(keys)
	p.start()

	_, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("GET"), p.publisher)})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(message(err), "every activation takes 2 approvals here: propose it (policyctl policy propose)") {
		t.Errorf("push: %v", err)
	}
	one := p.propose(sources("GET"), who.keys["ann"])
	other := p.propose(sources("POST"), p.publisher)
	if one.Number != 1 || one.State != "open" || one.ApprovalsRequired != 2 || one.Tests.Passed != 1 || other.Number != 2 {
		t.Errorf("proposals: %v, %v", one, other)
	}
	signed := func(change func(*bundle.Approved)) string {
		of := ofProposal(one)
		change(&of)
		signature, err := bundle.SignApproval(who.keys["bob"], of)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	forged := signed(func(of *bundle.Approved) { of.Digest = [32]byte{1} })
	ofOther := signed(func(of *bundle.Approved) { of.Proposal = 2 })
	elsewhere := signed(func(of *bundle.Approved) { of.Proposed = of.Proposed.Add(time.Nanosecond) })
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"nobody", p.approve(one, newKey(t)), "which is no approver's"},
		{"who signed the sources", p.approve(one, who.keys["ann"]), "signed the sources: an author does not approve the own work"},
		{"another content", second(p.admin.Approve(t.Context(), &policyv1.ApproveRequest{Number: 1, Signature: forged})), "of a content that is not proposal 1's"},
		{"another proposal", second(p.admin.Approve(t.Context(), &policyv1.ApproveRequest{Number: 1, Signature: ofOther})), "is of proposal 2, not of 1"},
		{"another control plane", second(p.admin.Approve(t.Context(), &policyv1.ApproveRequest{Number: 1, Signature: elsewhere})), "of another control plane's proposal 1"},
		{"no signature", second(p.admin.Approve(t.Context(), &policyv1.ApproveRequest{Number: 1, Signature: "x"})), "approval:"},
		{"too few", second(p.activate(one)), "0 of 2 approvals"},
		{"no such proposal", second(p.admin.Approve(t.Context(), &policyv1.ApproveRequest{Number: 9})), "no policy proposal 9"},
	} {
		if !strings.Contains(message(tt.err), tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, message(tt.err), tt.want)
		}
	}
	for range 2 { // The same person counts once.
		if err := p.approve(one, who.keys["bob"]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.activate(one); !strings.Contains(message(err), "1 of 2 approvals") {
		t.Errorf("with one approver, twice: %v", err)
	}
	if err := p.approve(one, who.keys["cy"]); err != nil {
		t.Fatal(err)
	}
	// Who is an approver no more does not count any more.
	approvers := p.config.Approvers
	p.config.Approvers = approvers[:2]
	p.start()
	if _, err := p.activate(one); !strings.Contains(message(err), "1 of 2 approvals") {
		t.Errorf("after an approver left: %v", err)
	}
	p.config.Approvers = approvers
	p.start()
	rev, err := p.activate(one)
	if err != nil || rev.Number != 1 {
		t.Fatal(rev, err)
	}
	if v := verdict(p.server, request("orders", "GET")); v != policy.Allow {
		t.Errorf("in force: %v", v)
	}
	list, err := p.admin.List(t.Context(), &policyv1.ListRequest{})
	if err != nil || len(list.Revisions[0].Approvals) != 2 || list.Revisions[0].Proposal != 1 || list.Revisions[0].Approvals[0].Approver != "bob" {
		t.Errorf("list: %v, %v", list, err)
	}
	// The other was made for what was in force before.
	if err := p.approve(other, who.keys["bob"]); err != nil {
		t.Errorf("a proposal of everything is as good over another base: %v", err)
	}
	if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 1}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("rollback: %v", err)
	}
	if _, err := p.admin.Withdraw(t.Context(), &policyv1.WithdrawRequest{Number: 2, Reason: "no"}); err != nil {
		t.Error(err)
	}
	if _, err := p.activate(other); !strings.Contains(message(err), "proposal 2 is withdrawn") {
		t.Errorf("withdrawn: %v", err)
	}
	var verbs []string
	for _, act := range p.acts {
		verbs = append(verbs, fmt.Sprintf("%s %s %v", act.Verb, act.Object, !act.Failed))
	}
	want := strings.Fields("pushed/policy/false proposed/proposal/true proposed/proposal/true approved/proposal/false approved/proposal/false approved/proposal/false approved/proposal/false " +
		"approved/proposal/false approved/proposal/false activated/proposal/false approved/proposal/true approved/proposal/true activated/proposal/false " +
		"approved/proposal/true activated/proposal/false activated/policy/true approved/proposal/true rolled-back/policy/false withdrawn/proposal/true")
	for i := range verbs {
		verbs[i] = strings.NewReplacer("policy proposal", "proposal", "rolled back", "rolled-back", " ", "/").Replace(verbs[i])
	}
	if diff := cmp.Diff(want, verbs); diff != "" {
		t.Errorf("acts (-want +got):\n%s", diff)
	}
}

func second[T any](_ T, err error) error { return err }

// TestOutdatedProposals: approvals are of the whole that would be in force, so
// that another's push in between ends them.
func TestOutdatedProposals(t *testing.T) {
	who := newPeople(t, "ann")
	p, platform, orders := twoPublishers(t, func(c *server.Config) { c.Approvers = who.approvers })
	all := sources("GET")
	p.pushAs(platform, bundle.Content{all[0], all[3]})
	proposal := p.propose(bundle.Content{all[1]}, orders)
	show, err := p.admin.ShowProposal(t.Context(), &policyv1.ShowProposalRequest{Number: 1})
	if err != nil || len(show.Files) != 3 {
		t.Errorf("show: %v, %v", show, err)
	}
	if err := p.approve(proposal, who.keys["ann"]); err != nil {
		t.Fatal(err)
	}
	p.pushAs(platform, bundle.Content{all[0]})
	if _, err := p.activate(proposal); !strings.Contains(message(err), "proposal 1 is outdated") {
		t.Errorf("after another push: %v", err)
	}
	if show, err := p.admin.ShowProposal(t.Context(), &policyv1.ShowProposalRequest{Number: 1}); err != nil || len(show.Files) != 3 || show.Proposal.State != "outdated" {
		t.Errorf("what was proposed: %v, %v", show, err)
	}
	again := p.propose(bundle.Content{all[1]}, orders)
	if rev, err := p.activate(again); err != nil || rev.Number != 3 {
		t.Errorf("proposed again: %v, %v", rev, err)
	}
	list, err := p.admin.Proposals(t.Context(), &policyv1.ProposalsRequest{})
	if err != nil || len(list.Proposals) != 2 || list.Proposals[0].State != "activated" || list.Proposals[0].Revision.Number != 3 {
		t.Errorf("proposals: %v, %v", list, err)
	}
}

func withGlass(c bundle.Content, approvers string) bundle.Content {
	c[0].Content = []byte(strings.TrimSuffix(string(c[0].Content), "}}") + `, "break_glass": {"b1": {"service": "orders",
		"source_ids": ["spiffe://example.org/svc/web"], "granted": "2030-01-01T12:00:00Z", "expires": "2030-01-01T13:00:00Z",
		"approvers": ` + approvers + `, "ticket": "T1"}}}}`)
	return c
}

// TestGlassTakesSignatures of the people that it names, where there are
// approvers.
func TestGlassTakesSignatures(t *testing.T) {
	who := newPeople(t, "ann", "bob", "cy")
	p := newPlane(t, func(c *server.Config) { c.Approvers = who.approvers })
	keys := keysOf(t, p.publisher)
	maps.Copy(keys, keysOf(t, who.keys["ann"]))
	p.config.Publishers = ownersOf(keys)
	p.start()
	p.push(sources("GET"))
	glass := withGlass(sources("GET"), `["ann", "bob"]`)
	_, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(glass, p.publisher)})
	if !strings.Contains(message(err), "break-glass b1 takes the signatures of ann and bob") {
		t.Errorf("push: %v", err)
	}
	_, err = p.admin.Propose(t.Context(), &policyv1.ProposeRequest{Bundle: p.bundle(withGlass(sources("GET"), `["ann", "dan"]`), who.keys["ann"])})
	if !strings.Contains(message(err), "break-glass b1 names dan, who is no approver here: approvers are ann, bob, cy") {
		t.Errorf("somebody who can never sign: %v", err)
	}
	proposal := p.propose(glass, who.keys["ann"])
	if proposal.ApprovalsRequired != 1 || len(proposal.RequiredBecause) != 1 {
		t.Errorf("Ann signed the sources, so that Bob is left: %v", proposal)
	}
	if err := p.approve(proposal, who.keys["cy"]); err != nil {
		t.Fatal(err)
	}
	if _, err := p.activate(proposal); !strings.Contains(message(err), "names bob, who has not signed") {
		t.Errorf("another's approval: %v", err)
	}
	if err := p.approve(proposal, who.keys["bob"]); err != nil {
		t.Fatal(err)
	}
	if _, err := p.activate(proposal); err != nil {
		t.Fatal(err)
	}
	if act := p.acts[len(p.acts)-1]; act.Kind != identity.ActAlarm || act.Reason != "" {
		t.Errorf("the alarm of verified approvers: %+v", act)
	}
	// What is broken already takes nothing more, and is shown after a restart.
	more := withGlass(sources("POST"), `["ann", "bob"]`)
	if resp := p.push(more); resp.Revision.GetNumber() != 3 {
		t.Errorf("push beside a broken glass: %v", resp)
	}
	_, err = p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(withGlass(sources("POST"), `["ann", "cy"]`), p.publisher)})
	if !strings.Contains(message(err), "break-glass b1 takes the signatures of ann and cy") {
		t.Errorf("other people are named beside what is broken: %v", err)
	}
	acts := len(p.acts)
	p.start()
	if standing := p.server.StandingAlarms(); len(standing) != 1 || standing[0].ObjectID != "b1" || len(p.acts) != acts {
		t.Errorf("after a restart: %v, %d acts more", standing, len(p.acts)-acts)
	}
	p.push(sources("GET"))
	if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 3}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a rollback breaks glass without anybody: %v", err)
	}
	p.config.Clock = func() time.Time { return time.Date(2030, 1, 1, 13, 0, 0, 0, time.UTC) }
	p.start()
	if resp := p.push(glass); resp.Revision == nil || len(p.server.StandingAlarms()) != 0 {
		t.Errorf("an entry that expired allows nothing: %v", resp)
	}
}

func TestUnverifiedGlassSaysSo(t *testing.T) {
	p := newPlane(t, nil)
	p.push(withGlass(sources("GET"), `["ann", "bob"]`))
	if act := p.acts[len(p.acts)-1]; act.Kind != identity.ActAlarm || act.Reason != "approvers not verified" {
		t.Errorf("alarm: %+v", act)
	}
}

func FuzzVerifyApproval(f *testing.F) {
	key := newKey(f)
	good, err := bundle.SignApproval(key, bundle.Approved{Proposal: 1, Digest: [32]byte{1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("a.b.c")
	keys := keysOf(f, key)
	f.Fuzz(func(t *testing.T, signature string) {
		if _, err := bundle.VerifyApproval(signature, keys, bundle.Approved{Proposal: 2, Digest: [32]byte{1}}); err == nil {
			t.Error("an approval of proposal 2 that nobody signed")
		}
	})
}

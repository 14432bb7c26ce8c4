package server_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

func TestPull(t *testing.T) {
	p := newPlane(t, nil)
	const source = "https://bundles.example.org/writ.tar.gz"
	get, put := p.bundle(sources("GET"), p.publisher), p.bundle(sources("PUT"), p.publisher)
	// Data is signed by its meaning: who has no key can write it otherwise.
	signed, err := bundle.ReadArchive(get)
	if err != nil {
		t.Fatal(err)
	}
	otherwise := sources("GET")
	otherwise[0].Content = append(otherwise[0].Content, '\n')
	rewritten, err := otherwise.Archive(signed.Signatures())
	if err != nil {
		t.Fatal(err)
	}
	typo := sources("PATCH")
	typo[1].Content = []byte("package services.orders\n\nallow if input.request.metod == \"GET\"\n")
	for _, step := range []struct {
		name    string
		data    []byte
		refused string
		number  uint64 // in force afterwards
		acts    int    // put on record by it
	}{
		{"first", get, "", 1, 1},
		{"the same again", get, "", 1, 0},
		{"newer", put, "", 2, 1},
		{"the first again", get, "it came from this source before", 2, 1},
		{"the first again, its data written otherwise", rewritten, "it came from this source before", 2, 1},
		{"garbage", []byte("<html>"), "not a readable tar.gz", 2, 1},
		{"nobody signed it", p.bundle(sources("POST"), nil), "not signed", 2, 1},
		{"a stranger signed it", p.bundle(sources("POST"), newKey(t)), "not trusted here", 2, 1},
		{"with a mistake", p.bundle(typo, p.publisher), "orders.rego:3:10", 2, 1},
		{"newest", p.bundle(sources("DELETE"), p.publisher), "", 3, 1},
	} {
		before := len(p.acts)
		err := p.server.Pull(t.Context(), source, step.data)
		var refused policy.Refused
		switch {
		case step.refused == "" && err != nil:
			t.Errorf("%s: %v", step.name, err)
		case step.refused != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), step.refused)):
			t.Errorf("%s: got %v, want %q", step.name, err, step.refused)
		}
		if n := p.server.Active().Revision.Number; n != step.number {
			t.Errorf("%s: revision %d is in force, want %d", step.name, n, step.number)
		}
		if n := len(p.acts) - before; n != step.acts {
			t.Errorf("%s: %d acts on record, want %d", step.name, n, step.acts)
		}
	}
	// A rollback holds against a source that goes on serving what it did.
	if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 2}); err != nil {
		t.Fatal(err)
	}
	if err := p.server.Pull(t.Context(), source, p.bundle(sources("DELETE"), p.publisher)); err != nil {
		t.Error(err)
	}
	if n := p.server.Active().Revision.Number; n != 4 {
		t.Errorf("revision %d is in force after the rollback", n)
	}
	// With another revision in its manifest, old content is new.
	again := append(bundle.Content{{Path: ".manifest", Content: []byte(`{"revision": "again", "rego_version": 1}`)}}, sources("GET")...)
	if err := p.server.Pull(t.Context(), source, p.bundle(again, p.publisher)); err != nil {
		t.Error(err)
	}
	if n := p.server.Active().Revision.Number; n != 5 {
		t.Errorf("revision %d is in force after the old content came again", n)
	}
	// What came from one source is nothing to another.
	if err := p.server.Pull(t.Context(), source+"2", put); err != nil {
		t.Error(err)
	}
}

// Where an activation takes approvals, what is pulled waits for them; during a
// rollout it is pulled later.
func TestPullWaits(t *testing.T) {
	who := newPeople(t, "ann", "bob", "cy")
	p := newPlane(t, func(c *server.Config) { c.Approvers, c.Approvals = who.approvers, 2 })
	if err := p.server.Pull(t.Context(), "s", p.bundle(sources("GET"), p.publisher)); err != nil {
		t.Fatal(err)
	}
	list, err := p.admin.Proposals(t.Context(), &policyv1.ProposalsRequest{})
	if err != nil || len(list.Proposals) != 1 || p.server.Active() != nil {
		t.Errorf("proposals: %v, %v; in force: %v", list, err, p.server.Active())
	}
	if err := p.server.Pull(t.Context(), "s", p.bundle(sources("GET"), p.publisher)); err != nil {
		t.Fatal(err)
	}
	if list, err = p.admin.Proposals(t.Context(), &policyv1.ProposalsRequest{}); err != nil || len(list.Proposals) != 1 {
		t.Errorf("proposals after the same again: %v, %v", list, err)
	}

	p = newPlane(t, nil)
	p.push(sources("GET"))
	if _, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("PUT"), p.publisher), Rollout: &policyv1.Rollout{Percent: 10}}); err != nil {
		t.Fatal(err)
	}
	var refused policy.Refused
	if err := p.server.Pull(t.Context(), "s", p.bundle(sources("POST"), p.publisher)); err == nil || errors.As(err, &refused) {
		t.Errorf("during a rollout: %v", err)
	}
	if _, err := p.admin.Promote(t.Context(), &policyv1.PromoteRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := p.server.Pull(t.Context(), "s", p.bundle(sources("POST"), p.publisher)); err != nil || p.server.Active().Revision.Number != 3 {
		t.Errorf("after it: %v, %v", err, p.server.Active().Revision)
	}
}

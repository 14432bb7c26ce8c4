package server_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

func TestPull(t *testing.T) {
	p := newPlane(t, nil)
	const source = "https://bundles.example.org/writ.tar.gz"
	get, put := p.bundle(sources("GET"), p.publisher), p.bundle(sources("PUT"), p.publisher)
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

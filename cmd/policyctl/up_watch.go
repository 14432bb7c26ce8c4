package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/policy"
)

// pushTimeout bounds one push, its tests included.
const pushTimeout = 30 * time.Second

// watchPolicy pushes the policy directory after each change, until ctx ends.
func (u *upRun) watchPolicy(ctx context.Context) error {
	quietly := true // the first time, for what changed since the first push
	return followDir(ctx, dirFollower{
		dir: u.mesh.Policy, rescan: rescan,
		changed: func() {
			u.pushAgain(ctx, quietly)
			quietly = false
		},
		warn: func(err error) { u.view.warn("watch of %s: %v", display(u.mesh.Policy), err) },
	})
}

// pushAgain pushes what was saved and says what came of it. quietly says
// nothing where nothing changed.
func (u *upRun) pushAgain(ctx context.Context, quietly bool) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	resp, err := u.pushPolicy(ctx)
	var refused policy.Refused
	switch {
	case ctx.Err() != nil && err != nil:
	case errors.As(err, &refused):
		u.view.printf("%s", u.view.style(red, "✗ policy refused; the last good revision stays in force"))
		for _, p := range refused {
			u.view.printf("    %s", p)
		}
	case err != nil:
		u.view.warn("policy: %v", err)
	case resp.GetUnchanged():
		if !quietly {
			u.view.printf("%s", u.view.style(dim, "  policy saved, nothing changed"))
		}
	default:
		if err := u.enforced(ctx, resp.GetRevision()); err != nil {
			u.view.warn("%v", err)
			return
		}
		u.view.printf("%s", u.view.style(green, fmt.Sprintf("✓ policy %s in force at all %d sidecars after %d ms, %d tests passed",
			revisionText(resp.GetRevision()), len(u.mesh.Services), time.Since(began).Milliseconds(), resp.GetTests().GetPassed())))
	}
}

package server

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/compile"
)

// activate records, stores and swaps in, in this order: after an error nothing
// has changed, and what has changed is on record.
func (s *Server) activate(ctx context.Context, c *candidate, info revisions.Info) (revisions.Info, error) {
	actor := c.actor
	if actor == "" {
		actor = s.cfg.Actor(ctx)
	}
	if !c.halts {
		if err := s.free(); err != nil {
			return revisions.Info{}, err
		}
	}
	if info.Author == "" {
		info.Author = actor
	}
	info.Activated = s.cfg.Clock().UTC()
	if err := s.compile(ctx, c, &info); err != nil {
		if ctx.Err() != nil {
			return revisions.Info{}, status.FromContextError(ctx.Err()).Err()
		}
		return revisions.Info{}, status.Errorf(codes.Internal, "activate policy: %v", err)
	}
	var next *active
	recorded := false
	info, err := s.store.Add(ctx, c.content, c.parts, info, func(tx *sql.Tx, info revisions.Info) (err error) {
		if next, err = s.ready(info, c); err != nil {
			return err
		}
		if err := s.within(ctx, tx, c, info); err != nil {
			return err
		}
		for _, act := range slices.Concat(s.acts(actor, info, next), c.acts) {
			if err := s.cfg.Emit(ctx, act); err != nil {
				return fmt.Errorf("cannot be put on record: %w", err)
			}
			recorded = true
		}
		return nil
	})
	if err != nil {
		if recorded {
			// The record says that it happened; it must also say that it did not.
			act := identity.Act{Kind: identity.ActPolicy, Verb: "activated", Actor: actor, Object: "policy",
				Failed: true, Reason: err.Error()}
			if emitErr := s.cfg.Emit(context.WithoutCancel(ctx), act); emitErr != nil {
				err = errors.Join(err, emitErr)
			}
		}
		return revisions.Info{}, status.Errorf(codes.Internal, "activate policy: %v", err)
	}
	if info.Stage == revisions.Canary {
		s.swapCanary(&rollout{canary: next, Running: c.running})
	} else {
		s.parts = c.parts
		s.swap(next)
		s.outdate(context.WithoutCancel(ctx))
	}
	s.cfg.Log.Info("policy activated", "revision", info.Revision.String(), "author", info.Author, "publisher", info.Publisher, "key_id", info.KeyID)
	return info, nil
}

// within is what an activation changes in the database beside the revision.
func (s *Server) within(ctx context.Context, tx *sql.Tx, c *candidate, info revisions.Info) error {
	if info.Stage == revisions.Canary {
		c.running.Number = info.Revision.Number
		if err := s.store.StartRollout(ctx, tx, c.running); err != nil {
			return err
		}
	}
	if c.halts {
		if err := s.endRollout(ctx, tx); err != nil {
			return err
		}
	}
	if c.diverged != nil {
		for _, digest := range c.diverged.digests {
			if err := s.store.NoteDivergence(ctx, tx, digest, compile.Version, c.diverged.detail); err != nil {
				return err
			}
		}
	}
	return s.markActivated(ctx, tx, info)
}

// acts are what an activation means for the record: the revision, and an alarm
// for each glass that it breaks anew.
func (s *Server) acts(actor string, info revisions.Info, next *active) []identity.Act {
	act := identity.Act{
		Kind: identity.ActPolicy, Verb: "activated", Actor: actor, Object: "policy", ObjectID: info.Revision.String(),
		Details: [][2]string{
			{"digest", hex.EncodeToString(info.Revision.Digest[:])},
			{"publisher", info.Publisher},
			{"key_id", info.KeyID},
			{"message", info.Message},
			{"tests_passed", strconv.Itoa(info.Tests.Passed)},
		},
	}
	add := func(name, value string) { act.Details = append(act.Details, [2]string{name, value}) }
	if how := info.Diverged(); how != "" {
		add("not_compiled", how)
	}
	if info.SourceCommit != "" {
		add("source_commit", info.SourceCommit)
	}
	if info.Stage == revisions.Canary {
		add("canary_percent", strconv.Itoa(info.Rollout.Percent))
	}
	if info.RollbackOf != 0 {
		act.Verb = "rolled back"
		add("rollback_of", strconv.FormatUint(info.RollbackOf, 10))
	}
	if info.Proposal != 0 {
		add("proposal", strconv.FormatUint(info.Proposal, 10))
	}
	var names []string
	for _, a := range info.Approvals {
		names = append(names, a.Approver)
	}
	if len(names) > 0 {
		add("approved_by", strings.Join(names, " "))
	}
	acts := []identity.Act{act}
	for _, b := range s.brokenAnew(next.catalogue, info.Activated) {
		acts = append(acts, s.glassAlarm(actor, b))
	}
	for _, e := range s.expiredAnew(next, info.Activated) {
		acts = append(acts, expiryAlarm(actor, e))
	}
	return acts
}

// brokenAnew are the break-glass entries that are not in force now, word for
// word, and would allow something.
func (s *Server) brokenAnew(cat bundle.Catalogue, now time.Time) []bundle.BreakGlass {
	var before []bundle.BreakGlass
	if a, _ := s.current(); a != nil {
		before = a.catalogue.BreakGlass
	}
	var anew []bundle.BreakGlass
	for _, b := range cat.BreakGlass {
		known := slices.ContainsFunc(before, func(o bundle.BreakGlass) bool {
			return o.ID == b.ID && o.Service == b.Service && o.Granted.Equal(b.Granted) && o.Expires.Equal(b.Expires) && o.Ticket == b.Ticket &&
				slices.Equal(o.SourceIDs, b.SourceIDs) && slices.Equal(o.Approvers, b.Approvers)
		})
		if !known && now.Before(b.Expires) {
			anew = append(anew, b)
		}
	}
	return anew
}

// glassAlarm says so when nobody can tell whether the approvers approved.
func (s *Server) glassAlarm(actor string, b bundle.BreakGlass) identity.Act {
	reason := ""
	if len(s.cfg.Approvers) == 0 {
		reason = "approvers not verified"
	}
	return identity.Act{
		Kind: identity.ActAlarm, Verb: "broken", Actor: actor, Object: "glass", ObjectID: b.ID, Reason: reason,
		Details: [][2]string{
			{"service", b.Service},
			{"source_ids", strings.Join(b.SourceIDs, " ")},
			{"expires", b.Expires.Format(time.RFC3339)},
			{"approvers", strings.Join(b.Approvers, " ")},
			{"ticket", b.Ticket},
		},
	}
}

// StandingAlarms are those of what is in force that are already on record: glass
// that is broken still, and rules that deny beyond their expiry. A control plane that was restarted shows them again.
func (s *Server) StandingAlarms() []identity.Act {
	a, _ := s.current()
	if a == nil {
		return nil
	}
	var acts []identity.Act
	for _, b := range a.catalogue.BreakGlass {
		if s.cfg.Clock().Before(b.Expires) {
			acts = append(acts, s.glassAlarm(a.info.Author, b))
		}
	}
	for _, e := range expired(a.expiries, s.cfg.Clock()) {
		acts = append(acts, expiryAlarm(a.info.Author, e))
	}
	return acts
}

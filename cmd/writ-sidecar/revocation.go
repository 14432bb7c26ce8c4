package main

import (
	"context"
	"time"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/proxy/admin"
)

// firstRevocations is how long the start waits for the list of revocations. It
// comes from the agent that has just given the SVID, so that it is there at once
// or not at all.
const firstRevocations = 5 * time.Second

// followRevocations gets the list of what is revoked before the first connection
// is accepted, and keeps it.
func (s *sidecar) followRevocations(ctx context.Context) (err error) {
	s.revoked, err = revocation.Follow(revocation.FollowConfig{
		Address: s.cfg.WorkloadAPI, MaxAge: s.cfg.Revocation.MaxAge, Deny: s.cfg.Revocation.MaxAgeAction == "deny", Log: s.log,
	})
	if err != nil {
		return err
	}
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopFollowing = stop
	s.following.Go(func() { s.revoked.Run(following) })
	limit := time.NewTimer(firstRevocations)
	defer limit.Stop()
	select {
	case <-s.revoked.First():
	case <-limit.C:
		s.log.Warn("starting without knowing what is revoked", "reason", s.revoked.Problem())
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (s *sidecar) revocationGauges(m *admin.Metrics) {
	m.Gauge("writ_revocations", "Revocations of SVIDs in force.", func() float64 { return float64(s.revoked.Len()) })
	m.Gauge("writ_revocations_current_timestamp_seconds", "When the issuer last said that these are all revocations, Unix time; 0 for never.", func() float64 {
		if at := s.revoked.CurrentAt(); !at.IsZero() {
			return float64(at.UnixMilli()) / 1e3
		}
		return 0
	})
}

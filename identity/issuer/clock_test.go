package issuer_test

import (
	"slices"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity"
)

// A clock that is two hours ahead for a while, while the issuer prunes: the
// entries that have not expired, the agents and their tokens are there afterwards,
// and what is signed bears the right time again. It is on record.
func TestClockAhead(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token("/node/a"))
	late := w.token("/node/b")
	e := entry("/svc/web", "/node/a", "uid:1")
	e.ExpiresAt = w.clock.now().Add(time.Hour).Unix()
	web := w.create(e)[0]
	alarms := make(chan identity.Act, 1)
	w.refuseActs(func(act identity.Act) bool {
		if act.Object == "clock" {
			alarms <- act
		}
		return false
	})
	// A change of the registry has the loop look at the clock.
	set := func(by time.Duration, direction string) {
		t.Helper()
		w.clock.advance(by)
		w.create(entry("/svc/other", "/node/a", "uid:"+by.String()))
		if act := <-alarms; act.Kind != identity.ActAlarm || act.ObjectID != direction || !slices.Contains(act.Details, [2]string{"by", "2h0m0s"}) {
			t.Errorf("on record: %v", act)
		}
	}
	_, err := a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	set(2*time.Hour, "ahead")
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_EXPIRED)
	set(-2*time.Hour, "back")
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	resp, err := a.svids().BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: web.Id, Csr: csr(t, newKey(t), "")}}})
	must(t, err)
	if code := codes.Code(resp.Results[0].Status.Code); code != codes.OK {
		t.Fatalf("no SVID after the clock is right: %v", resp.Results[0].Status)
	}
	if now := w.clock.now().Unix(); resp.Results[0].Svid.ExpiresAt > now+3600 || resp.Results[0].Svid.ExpiresAt < now+3500 {
		t.Errorf("the SVID ends %d s from now", resp.Results[0].Svid.ExpiresAt-now)
	}
	w.join(late)
}

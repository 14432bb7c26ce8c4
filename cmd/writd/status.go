package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/version"
	"github.com/writ-dev/writ/policy/policyv1"
)

// maxAlarms is how many alarms status shows. All are on record.
const maxAlarms = 20

// alarms are those since the start, for a person who asks for the status.
type alarms struct {
	log  *slog.Logger
	mu   sync.Mutex
	list []string
}

func newAlarms(log *slog.Logger) *alarms { return &alarms{log: log} }

func (a *alarms) raise(act identity.Act) {
	text := fmt.Sprintf("%s %s %s %s by %s", time.Now().UTC().Format(time.RFC3339), act.Object, act.ObjectID, act.Verb, act.Actor)
	if act.Reason != "" {
		text += ": " + act.Reason
	}
	a.log.Warn("alarm", "verb", act.Verb, "object", act.Object, "id", act.ObjectID, "actor", act.Actor, "reason", act.Reason)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, text)
	if len(a.list) > maxAlarms {
		a.list = a.list[len(a.list)-maxAlarms:]
	}
}

func (a *alarms) texts() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.list)
}

// statusService serves policyv1.Status.
type statusService struct {
	policyv1.UnimplementedStatusServer
	w *writd
}

// Get implements policyv1.StatusServer.
func (s *statusService) Get(ctx context.Context, _ *policyv1.StatusRequest) (*policyv1.StatusResponse, error) {
	w := s.w
	resp := &policyv1.StatusResponse{TrustDomain: w.td.Name(), Version: version.String(), Alarms: w.alarms.texts()}
	if w.decision != nil {
		if active := w.decision.Active(); active != nil {
			resp.Revision = &policyv1.Revision{Epoch: active.Revision.Epoch, Number: active.Revision.Number, Digest: active.Revision.Digest[:]}
			resp.RevisionActivated = active.Activated.UnixNano()
		}
		if rollout := w.decision.Rollout(); rollout != nil {
			resp.Rollout = rollout.String()
		}
		if alarm := w.ahead(ctx); alarm != "" {
			resp.Alarms = append(resp.Alarms, alarm)
		}
	}
	resp.Components = append(resp.Components, w.selfComponent(resp))
	resp.Components = append(resp.Components, w.agentComponents()...)
	resp.Components = append(resp.Components, w.sidecarComponents(resp)...)
	return resp, nil
}

// ahead is the alarm of a control plane that is older than its sidecars, empty
// when it is not.
func (w *writd) ahead(ctx context.Context) string {
	ids, newest, err := w.decision.Ahead(ctx)
	switch {
	case err != nil:
		return err.Error()
	case len(ids) == 0:
		return ""
	}
	return fmt.Sprintf("%d sidecars, %s among them, run revision %s, which is newer than this control plane: an older state of it was restored, and they refuse what it offers; "+
		"look at what is in force, then: policyctl policy raise-epoch --reason …", len(ids), ids[0], newest)
}

func (w *writd) selfComponent(resp *policyv1.StatusResponse) *policyv1.Component {
	c := &policyv1.Component{
		Kind: "writd", Name: strings.Join(w.roles(), ","), SpiffeId: identity.ServerID(w.td).String(), Connected: true,
		Version: resp.Version, Revision: resp.Revision, RevisionActivated: resp.RevisionActivated, LastSeen: time.Now().UnixNano(),
	}
	if svid, err := w.source.GetX509SVID(); err == nil {
		c.SvidExpires = svid.Certificates[0].NotAfter.UnixNano()
	}
	c.Problems = append(w.problems(), slices.Concat(w.policySourceProblems(), w.federationProblems(), w.registryProblems())...)
	if s := w.record.status(); s != nil && s.MaxBytes > 0 && s.Bytes > s.MaxBytes/10*9 {
		c.NotEnforced = append(c.NotEnforced, fmt.Sprintf("audit ledger holds %d of %d bytes: it stops acknowledging at the cap", s.Bytes, s.MaxBytes))
	}
	return c
}

func (w *writd) roles() []string {
	var roles []string
	for _, r := range []string{"issuer", "decision", "audit"} {
		if w.cfg.Runs(r) {
			roles = append(roles, r)
		}
	}
	return roles
}

func (w *writd) agentComponents() []*policyv1.Component {
	if w.registry == nil {
		return nil
	}
	var all []*policyv1.Component
	for _, a := range w.registry.Agents() {
		c := &policyv1.Component{
			Kind: "agent", Name: w.registry.Alias(a.ID).String(), SpiffeId: a.ID.String(),
			SvidExpires: a.LastExpiry().UnixNano(), Connected: w.registry.Watched(a.ID),
		}
		if a.Banned {
			c.Refused = "banned"
		}
		all = append(all, c)
	}
	return all
}

// sidecarComponents joins what enforcement points say of themselves with what
// the collector knows of their streams.
func (w *writd) sidecarComponents(resp *policyv1.StatusResponse) []*policyv1.Component {
	if w.decision == nil {
		return nil
	}
	lag := auditLag(w.record.status())
	active := w.decision.Active()
	var all []*policyv1.Component
	for _, r := range w.decision.Reports() {
		c := &policyv1.Component{
			Kind: "sidecar", Name: r.Report.GetService(), SpiffeId: r.SPIFFEID.String(), SvidExpires: r.Report.GetSvidExpires(),
			LastSeen: r.LastSeen.UnixNano(), Connected: r.Connected, Version: r.Report.GetVersion(), Revision: r.Report.GetRevision(),
			AuditLag: lag[r.SPIFFEID.String()], NotEnforced: r.Report.GetNotEnforced(), Refused: r.Report.GetRefused(), Engine: r.Report.GetEngine(),
			Problems: r.Report.GetProblems(),
		}
		if active != nil {
			if svc, ok := active.Services[c.Name]; ok {
				c.Mode = svc.ModeAt(time.Now()).String()
			}
			if c.Revision.GetEpoch() == active.Revision.Epoch && c.Revision.GetNumber() == active.Revision.Number {
				c.RevisionActivated = resp.RevisionActivated
			}
		}
		all = append(all, c)
	}
	return all
}

// auditLag is, by SPIFFE ID, how many events are committed at recorders and
// not yet durable at the collector.
func auditLag(s *auditv1.AuditStatusResponse) map[string]uint64 {
	lag := map[string]uint64{}
	for _, st := range s.GetStreams() {
		if st.Committed > st.Stored {
			lag[st.Stream.GetSpiffeId()] += st.Committed - st.Stored
		}
	}
	return lag
}

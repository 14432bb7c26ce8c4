package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
)

const (
	// maxReason is how long the reason of a revocation may be, in bytes.
	maxReason = 500
	// maxRevocations bounds the list, which everybody holds.
	maxRevocations = 100_000
	// maxAhead is how far ahead of the clock an SVID may say that it was issued:
	// an X509-SVID is valid at once all the same.
	maxAhead = ca.Backdate
)

// revocationService is writ.identity.revocation.v1.Admin.
type revocationService struct {
	*Issuer
	revocationv1.UnimplementedAdminServer
}

// Revocations is what is revoked, kept current.
func (i *Issuer) Revocations() *revocation.Set { return i.store.Revocations() }

// Revoke implements revocationv1.AdminServer.
func (s *revocationService) Revoke(ctx context.Context, req *revocationv1.RevokeRequest) (*revocationv1.RevokeResponse, error) {
	kind, subject, err := revocation.SubjectFromProto(req.GetRevocation())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "revocation: want serial, spiffe_id or agent")
	}
	if subject, err = s.subject(kind, subject); err != nil {
		return nil, err
	}
	reason := strings.ToValidUTF8(req.GetRevocation().GetReason(), "\uFFFD")
	if len(reason) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "revocation.reason has %d bytes, at most %d are accepted", len(reason), maxReason)
	}
	var made *revocation.Revocation
	err = s.updateAs(ctx, urgent, func(tx *sqlstore.Tx, record recorder) error {
		if list, _ := s.Revocations().Now(); list.Len() >= maxRevocations {
			return status.Errorf(codes.ResourceExhausted, "%d revocations are in force, as many as there can be: revoke by SPIFFE ID or agent instead of by serial number", list.Len())
		}
		if kind == revocation.Agent {
			// Under a name that nobody has, nothing would be revoked.
			if _, err := tx.Agent(spiffeid.RequireFromString(subject)); errors.Is(err, registry.ErrNotFound) {
				return status.Errorf(codes.NotFound, "agent %s is not known: if it was evicted, revoke by SPIFFE ID", subject)
			} else if err != nil {
				return err
			}
		}
		made, err = s.revoke(ctx, tx, record, kind, subject, reason)
		return err
	})
	if err != nil {
		return nil, s.internal(ctx, "revoke", err)
	}
	return &revocationv1.RevokeResponse{Revocation: revocation.ToProto(made, true)}, nil
}

// List implements revocationv1.AdminServer.
func (s *revocationService) List(context.Context, *revocationv1.ListRequest) (*revocationv1.ListResponse, error) {
	list, _ := s.Revocations().Now()
	resp := &revocationv1.ListResponse{}
	for _, r := range list.All() {
		if s.now().Before(r.Expires) {
			resp.Revocations = append(resp.Revocations, revocation.ToProto(r, true))
		}
	}
	return resp, nil
}

// subject checks what is to be revoked and returns its one form.
func (i *Issuer) subject(kind revocation.Kind, text string) (string, error) {
	if kind == revocation.Serial {
		serial, err := revocation.ParseSerial(text)
		if err != nil {
			return "", status.Errorf(codes.InvalidArgument, "revocation.serial: %v", err)
		}
		return serial.String(), nil
	}
	field := "revocation.spiffe_id"
	if kind == revocation.Agent {
		field = "revocation.agent"
	}
	id, err := spiffeid.FromString(text)
	switch {
	case err != nil:
		return "", status.Errorf(codes.InvalidArgument, "%s: %v", field, err)
	case !id.MemberOf(i.cfg.TrustDomain):
		return "", status.Errorf(codes.InvalidArgument, "%s: %s is not of trust domain %s: only its own issuer can revoke what it issued", field, id, i.cfg.TrustDomain.Name())
	case kind == revocation.Agent && !isAgentPath(id.Path()):
		return "", status.Errorf(codes.InvalidArgument, "%s: %s is not the ID of an agent, which begins with /spire/agent/", field, id)
	case kind == revocation.SPIFFEID && isAgentPath(id.Path()):
		return "", status.Errorf(codes.InvalidArgument, "%s: %s is an agent: ban it to end its own rights, or revoke what was issued through it as an agent", field, id)
	case id.Path() == "":
		return "", status.Errorf(codes.InvalidArgument, "%s: %s is a trust domain: to revoke everything, replace its authorities", field, id)
	}
	return id.String(), nil
}

// revoke revokes a subject as of now.
func (i *Issuer) revoke(ctx context.Context, tx *sqlstore.Tx, record recorder, kind revocation.Kind, subject, reason string) (*revocation.Revocation, error) {
	now := i.now().UTC()
	r := revocation.Revocation{
		Kind: kind, Subject: subject, Backdate: ca.Backdate, Expires: i.lastExpiry(now).UTC(),
		Revoked: now.Truncate(time.Second), Actor: callerOf(ctx).Actor(), Reason: reason,
	}
	if kind != revocation.Serial {
		r.Before = i.cutoff(now, &r)
		if r.Before.Sub(now) >= maxAhead {
			return nil, status.Error(codes.Unavailable, "too many revocations that concern the same SVIDs within seconds: try again in a few seconds")
		}
	}
	made, err := tx.Revoke(r)
	if err != nil {
		return nil, err
	}
	return made, record(revokedAct(made))
}

// cutoff is the time that parts what is revoked from what is not. Times in SVIDs
// are whole seconds: the one that has begun is revoked as a whole, and what is
// issued in it from here on bears the next. So does what was issued in it since
// an earlier revocation, and that is to be revoked by this one.
func (i *Issuer) cutoff(now time.Time, r *revocation.Revocation) time.Time {
	cutoff := now.Truncate(time.Second).Add(time.Second)
	list, _ := i.Revocations().Now()
	for _, earlier := range list.All() {
		if earlier.Kind == r.Kind && earlier.Subject != r.Subject {
			continue // no SVID has two IDs or two agents
		}
		if !earlier.Before.Before(cutoff) {
			cutoff = earlier.Before.Add(time.Second)
		}
	}
	return cutoff
}

// clockMargin is how much longer than its time a revocation is kept, for clocks
// that are ahead: those who forget it too early accept what it ended.
const clockMargin = 24 * time.Hour

// lastExpiry is when the last SVID there can be has expired, by any clock that is
// not off by more than clockMargin: none outlives its authority.
func (i *Issuer) lastExpiry(now time.Time) time.Time {
	last := now.Add(time.Minute)
	bundle, _ := i.ca.Bundle()
	for _, cert := range bundle.X509Authorities {
		if cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	for _, key := range bundle.JWTAuthorities {
		if key.ExpiresAt.After(last) {
			last = key.ExpiresAt
		}
	}
	return last.Add(clockMargin)
}

// notBefore is when an SVID of id that is issued through an agent must say that
// it was issued; zero for now.
func (i *Issuer) notBefore(id, through spiffeid.ID) (time.Time, error) {
	list, _ := i.Revocations().Now()
	cutoff := list.Cutoff(id, through)
	if ahead := cutoff.Sub(i.now()); ahead > maxAhead {
		i.log.Error("what was issued to an ID is revoked as of a time that has not come: the clock went back", "id", id.String(), "revoked_before", cutoff)
		return time.Time{}, status.Errorf(codes.Unavailable, "SVIDs of %s issued before %s are revoked, which the issuer's clock has not reached", id, cutoff.UTC().Format(time.RFC3339))
	}
	return cutoff, nil
}

// revoked is what revokes an SVID, nil if nothing does.
func (i *Issuer) revoked(leaf *x509.Certificate, id spiffeid.ID) *revocation.Revocation {
	list, _ := i.Revocations().Now()
	return list.X509(leaf, id)
}

// checkRevoked refuses a caller whose SVID is revoked.
func (i *Issuer) checkRevoked(c Caller) error {
	if c.kind != svid || i.revoked(c.leaf, c.id) == nil {
		return nil
	}
	if isAgentPath(c.id.Path()) {
		return deny(types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "the agent's SVID is revoked")
	}
	return status.Error(codes.PermissionDenied, "the SVID is revoked")
}

func revokedAct(r *revocation.Revocation) identity.Act {
	act := identity.Act{
		Kind: identity.ActAdmin, Verb: "revoked", Object: "svid", ObjectID: r.Subject,
		Details: [][2]string{{"by", string(r.Kind)}, {"expires_at", r.Expires.UTC().Format(time.RFC3339)}},
	}
	if !r.Before.IsZero() {
		act.Details = append(act.Details, [2]string{"issued_before", r.Before.UTC().Format(time.RFC3339)})
	}
	if r.Reason != "" {
		act.Details = append(act.Details, [2]string{"reason", r.Reason})
	}
	return act
}

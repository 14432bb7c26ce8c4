package revocation

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/revocationv1"
)

// ToProto is a revocation on the wire. Only with people are the names of those
// who revoked it, and why.
func ToProto(r *Revocation, people bool) *revocationv1.Revocation {
	pb := &revocationv1.Revocation{
		ExpiresAt: r.Expires.Unix(), Number: r.Number, BackdateSeconds: int64(r.Backdate / time.Second), RevokedAt: seconds(r.Revoked),
	}
	switch r.Kind {
	case Serial:
		pb.Subject = &revocationv1.Revocation_Serial{Serial: r.Subject}
	case SPIFFEID:
		pb.Subject = &revocationv1.Revocation_SpiffeId{SpiffeId: r.Subject}
	case Agent:
		pb.Subject = &revocationv1.Revocation_Agent{Agent: r.Subject}
	}
	pb.IssuedBefore = seconds(r.Before)
	if people {
		pb.Actor, pb.Reason = r.Actor, r.Reason
	}
	return pb
}

// SubjectFromProto reads what a revocation names.
func SubjectFromProto(pb *revocationv1.Revocation) (Kind, string, error) {
	switch s := pb.GetSubject().(type) {
	case *revocationv1.Revocation_Serial:
		return Serial, s.Serial, nil
	case *revocationv1.Revocation_SpiffeId:
		return SPIFFEID, s.SpiffeId, nil
	case *revocationv1.Revocation_Agent:
		return Agent, s.Agent, nil
	}
	return "", "", errors.New("a revocation of something that is neither serial, spiffe_id nor agent")
}

// maxSeconds keeps times from the wire within what time.Time adds up.
const maxSeconds = 1 << 40

// FromProto reads a revocation from the wire.
func FromProto(pb *revocationv1.Revocation) (*Revocation, error) {
	kind, subject, err := SubjectFromProto(pb)
	if err != nil {
		return nil, err
	}
	for _, n := range []int64{pb.GetExpiresAt(), pb.GetIssuedBefore(), pb.GetRevokedAt(), pb.GetBackdateSeconds()} {
		if n < 0 || n > maxSeconds {
			return nil, fmt.Errorf("revocation of %s %q: a time of %d seconds", kind, subject, n)
		}
	}
	if pb.GetBackdateSeconds() > int64(24*time.Hour/time.Second) {
		return nil, fmt.Errorf("revocation of %s %q: backdated by %d seconds", kind, subject, pb.GetBackdateSeconds())
	}
	r := &Revocation{
		Kind: kind, Subject: subject, Number: pb.GetNumber(), Backdate: time.Duration(pb.GetBackdateSeconds()) * time.Second,
		Expires: time.Unix(pb.GetExpiresAt(), 0).UTC(), Actor: pb.GetActor(), Reason: pb.GetReason(),
	}
	r.Before, r.Revoked = fromSeconds(pb.GetIssuedBefore()), fromSeconds(pb.GetRevokedAt())
	return r, r.Validate()
}

// seconds is a time in Unix seconds, 0 for no time.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromSeconds(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

// perUpdate is how many revocations one Update holds: well under 4 MB even if
// each names the longest of SPIFFE IDs.
const perUpdate = 1000

// Updates are the messages that carry revocations; at least one.
func Updates(revocations []*Revocation, number uint64, currentAt time.Time) []*revocationv1.Update {
	var all []*revocationv1.Update
	for {
		n := min(len(revocations), perUpdate)
		u := &revocationv1.Update{Number: number, Complete: n == len(revocations), CurrentAt: nanos(currentAt)}
		for _, r := range revocations[:n] {
			u.Revocations = append(u.Revocations, ToProto(r, false))
		}
		all = append(all, u)
		if revocations = revocations[n:]; len(revocations) == 0 {
			return all
		}
	}
}

// MergeUpdate adds what an Update holds. What in it is not valid is an error,
// and the rest is added: a list that lacks one is better than one that lacks all.
func (s *Set) MergeUpdate(u *revocationv1.Update, now time.Time) (changed bool, err error) {
	var errs []error
	var got []*Revocation
	for _, pb := range u.GetRevocations() {
		r, err := FromProto(pb)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		got = append(got, r)
	}
	changed, err = s.Merge(got, now)
	if err != nil {
		errs = append(errs, err)
	}
	return changed, few(errs)
}

// Marshal is the list for a file.
func (l *List) Marshal(currentAt time.Time) ([]byte, error) {
	u := &revocationv1.Update{Number: l.number, Complete: true, CurrentAt: nanos(currentAt)}
	for _, r := range l.All() {
		u.Revocations = append(u.Revocations, ToProto(r, false))
	}
	return proto.Marshal(u)
}

// Load adds what Marshal made, and what was known then of its age.
func (s *Set) Load(data []byte, now time.Time) error {
	var u revocationv1.Update
	if err := proto.Unmarshal(data, &u); err != nil {
		return fmt.Errorf("list of revocations: %w", err)
	}
	if _, err := s.MergeUpdate(&u, now); err != nil {
		return fmt.Errorf("list of revocations: %w", err)
	}
	if at := time.Unix(0, u.GetCurrentAt()); u.GetCurrentAt() > 0 && at.Before(now) {
		s.Heard(at)
	}
	return nil
}

// few joins errors, but of many only the first.
func few(errs []error) error {
	if len(errs) <= 3 {
		return errors.Join(errs...)
	}
	return fmt.Errorf("%d revocations are not valid, the first: %w", len(errs), errs[0])
}

// nanos is a time in nanoseconds since the Unix epoch, 0 for no time.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

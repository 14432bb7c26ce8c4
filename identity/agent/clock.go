package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/internal/skew"
)

const (
	// clockWait is when to ask again for what came and was outside of its time by
	// this clock: each answer is a signature, on the issuer's record.
	clockWait = 30 * time.Second
	// clockNotable is a difference of clocks that an administrator should hear of:
	// as far as SVIDs are backdated.
	clockNotable = 10 * time.Second
)

// verify verifies a chain by this machine's clock. Where only the time is wrong,
// the error is a *skew.Error.
func verify(chain []*x509.Certificate, bundle x509bundle.Source) error {
	now := time.Now()
	_, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err == nil {
		return nil
	}
	if off := skew.In(chain, now); off != nil {
		if _, _, timeless := x509svid.Verify(chain, bundle, x509svid.WithTime(chain[0].NotAfter.Add(-time.Second))); timeless == nil {
			return off
		}
	}
	return err
}

// ofClocks returns what in an error is about clocks, nil if nothing is.
func ofClocks(err error) *skew.Error {
	var off *skew.Error
	if errors.As(err, &off) {
		return off
	}
	return nil
}

// aheadOfUs tells that something is not valid yet, and will be.
func aheadOfUs(err error) bool {
	off := ofClocks(err)
	return off != nil && off.Ahead()
}

// hearClock compares the issuer's clock with this one. An issuer that says nothing
// of revocations does not tell its time.
func (a *Agent) hearClock(u *revocationv1.Update) {
	if u.GetCurrentAt() <= 0 {
		return
	}
	ahead := time.Until(time.Unix(0, u.GetCurrentAt()))
	before := time.Duration(a.issuerAhead.Swap(int64(ahead)))
	apart, wasApart := ahead.Abs() >= clockNotable, before.Abs() >= clockNotable
	switch {
	case apart && (!wasApart || (ahead-before).Abs() >= clockNotable):
		a.log.Error("the issuer's clock and this machine's are apart: what is signed may not be valid here: check both", "issuer_clock", clocksApart(ahead))
	case wasApart && !apart:
		a.log.Info("the issuer's clock and this machine's agree again")
	}
}

// clocksApart says which clock is ahead.
func clocksApart(ahead time.Duration) string {
	if ahead < 0 {
		return fmt.Sprintf("%s behind this machine's", skew.Round(ahead))
	}
	return fmt.Sprintf("%s ahead of this machine's", skew.Round(ahead))
}

// clockNote is what is known of the issuer's clock, for a log of what failed.
func (a *Agent) clockNote() []any {
	if ahead := time.Duration(a.issuerAhead.Load()); ahead.Abs() >= clockNotable {
		return []any{"issuer_clock", clocksApart(ahead)}
	}
	return nil
}

// Package skew says in plain words what two clocks make of each other: that of
// whoever made a certificate, and that of the machine that looks at it.
package skew

import (
	"crypto/x509"
	"fmt"
	"time"
)

// Error is a certificate that this machine's clock puts outside of its time. It
// may be good by another clock.
type Error struct {
	NotBefore, NotAfter time.Time
	// Now is this machine's time.
	Now time.Time
}

// Of returns an Error where a certificate is not valid at now, and otherwise nil.
func Of(cert *x509.Certificate, now time.Time) *Error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return &Error{cert.NotBefore, cert.NotAfter, now}
	}
	return nil
}

// In is Of for the first of a chain that is not valid at now.
func In(chain []*x509.Certificate, now time.Time) *Error {
	for _, cert := range chain {
		if e := Of(cert, now); e != nil {
			return e
		}
	}
	return nil
}

// Ahead tells that it is not valid yet, which only happens where clocks differ.
func (e *Error) Ahead() bool { return e.Now.Before(e.NotBefore) }

// Off is how far the clocks must be apart at least, if that is the cause.
func (e *Error) Off() time.Duration {
	if e.Ahead() {
		return e.NotBefore.Sub(e.Now)
	}
	return e.Now.Sub(e.NotAfter)
}

// Error is a phrase that goes after the name of the certificate.
func (e *Error) Error() string {
	if e.Ahead() {
		return fmt.Sprintf("is not valid before %s, and this machine's clock says %s: that of whoever signed it is ahead of it by %s or more: check both clocks",
			text(e.NotBefore), text(e.Now), Round(e.Off()))
	}
	return fmt.Sprintf("ended at %s, and this machine's clock says %s: it was not renewed in time, or the clocks are apart by %s or more: check both",
		text(e.NotAfter), text(e.Now), Round(e.Off()))
}

func text(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Round is a difference as people read it: whole seconds, and at least one.
func Round(d time.Duration) time.Duration {
	return max(time.Second, d.Abs().Round(time.Second))
}

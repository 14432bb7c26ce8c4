package audit

import "errors"

var (
	// ErrFull means that there is no room for an event. The caller denies.
	ErrFull = errors.New("audit: no room for the event")
	// ErrClosed means that the recorder was closed. The caller denies.
	ErrClosed = errors.New("audit: recorder is closed")
	// ErrTooLarge means that the event exceeds MaxEventBytes. The caller denies.
	ErrTooLarge = errors.New("audit: event is too large to record")
)

package ledger

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// A recorder that only greets, each time as another instance, is bounded too.
func TestGreetingsAreBounded(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	hello := &auditv1.Hello{Epoch: 1, First: 1, Chain: make([]byte, 32)}
	var refused error
	n := 0
	for ; refused == nil && n <= 2*maxInstances; n++ {
		s := audit.Stream{SPIFFEID: webs.SPIFFEID, Instance: uuid.NewString()}
		if _, refused = l.Resume(s, hello); refused == nil {
			l.Seen(s, 0)
		}
	}
	if !errors.Is(refused, ErrTooManyStreams) || n != maxInstances+1 {
		t.Errorf("greeting %d: %v, want ErrTooManyStreams at %d", n, refused, maxInstances+1)
	}
	if _, err := l.Resume(apis, hello); err != nil {
		t.Errorf("another SPIFFE ID: %v", err)
	}
}

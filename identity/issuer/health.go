package issuer

import (
	"fmt"

	"github.com/writ-dev/writ/internal/health"
)

// An issuer serves while it is able to sign, sure of what to sign, and able to keep
// what it is told.

func (i *Issuer) canSign() health.State {
	until, changed, err := i.ca.Readiness()
	if err != nil {
		err = fmt.Errorf("issuer: %w", err)
	}
	return health.State{Problem: err, Until: until, Changed: changed}
}

func (i *Issuer) canWrite() health.State {
	turned, trouble := i.store.Writable()
	s := health.State{Changed: turned}
	if trouble != nil {
		s.Problem = fmt.Errorf("registry: %w", trouble)
	}
	return s
}

func (i *Issuer) isFresh() health.State {
	until, answered, err := i.store.Freshness()
	if err != nil {
		err = fmt.Errorf("registry: %w", err)
	}
	return health.State{Problem: err, Until: until, Changed: answered}
}

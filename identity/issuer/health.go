package issuer

import (
	"fmt"

	"github.com/writ-dev/writ/internal/health"
)

// An issuer serves while it is able to sign, and sure of what to sign.

func (i *Issuer) canSign() health.State {
	until, changed, err := i.ca.Readiness()
	if err != nil {
		err = fmt.Errorf("issuer: %w", err)
	}
	return health.State{Problem: err, Until: until, Changed: changed}
}

func (i *Issuer) isFresh() health.State {
	until, answered, err := i.store.Freshness()
	if err != nil {
		err = fmt.Errorf("registry: %w", err)
	}
	return health.State{Problem: err, Until: until, Changed: answered}
}

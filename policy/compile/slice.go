package compile

import (
	"context"
	"fmt"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// Slice compiles what a slice holds and gives the encoded program that belongs
// into it. Whoever has the sources gets the same bytes: the control plane that
// signs them, a sidecar that trusts publishers only, and who verifies either.
func Slice(ctx context.Context, s *bundle.Slice, cfg Config) ([]byte, *Report, error) {
	p, err := opa.Load(s.Content)
	if err != nil {
		return nil, nil, err
	}
	cfg.Services = s.Services
	prog, report, err := Compile(ctx, p, cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("slice of %s: %w", s.SPIFFEID, err)
	}
	return prog.Encode(), report, nil
}

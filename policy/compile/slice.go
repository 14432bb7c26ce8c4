package compile

import (
	"context"
	"fmt"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// Part is the encoded part of a compiled policy that belongs into the slice of
// the services, nil when there is none or it is too large to send.
func Part(p *program.Program, services []string) []byte {
	if len(services) == 0 {
		return nil
	}
	encoded := p.Select(services).Encode()
	if len(encoded) > bundle.MaxFileBytes {
		return nil
	}
	return encoded
}

// Slice gives the encoded program that belongs into a slice of content, as the
// control plane makes it: whoever has the sources gets the same bytes.
func Slice(ctx context.Context, content bundle.Content, s *bundle.Slice) ([]byte, error) {
	loaded, err := opa.Load(content)
	if err != nil {
		return nil, err
	}
	compiled, _, err := Compile(ctx, loaded, Config{})
	if err != nil {
		return nil, fmt.Errorf("slice of %s: %w", s.SPIFFEID, err)
	}
	return Part(compiled, s.Services), nil
}

package server

import (
	"context"
	"fmt"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// Content is the sources of a revision that was in force here.
func (s *Server) Content(ctx context.Context, r policy.Revision) (bundle.Content, error) {
	if r.Number == 0 {
		return nil, fmt.Errorf("revision %s was never in force", r)
	}
	info, content, err := s.store.Get(ctx, r.Number)
	if err != nil {
		return nil, err
	}
	if info.Revision != r {
		return nil, fmt.Errorf("revision %d is %s here, not %s", r.Number, info.Revision, r)
	}
	return content, nil
}

package collect

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit"
)

// A recorder that stops is no cause for a warning.
func TestCleanEndsAreNoWarning(t *testing.T) {
	for _, tc := range []struct {
		err  error
		loud bool
	}{
		{io.EOF, false},
		{context.Canceled, false},
		{status.Error(codes.Canceled, "context canceled"), false},
		{status.Error(codes.Unavailable, "transport is closing"), false},
		{status.Error(codes.InvalidArgument, "malformed batch"), true},
		{status.Error(codes.DataLoss, "the chain is not the one sent"), true},
		{audit.ErrFull, true},
		{fmt.Errorf("disk"), true},
	} {
		var log bytes.Buffer
		s := NewServer(ServerConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
		s.wire(audit.Stream{}, tc.err)
		if loud := strings.Contains(log.String(), "level=WARN") || strings.Contains(log.String(), "level=ERROR"); loud != tc.loud {
			t.Errorf("%v: logged %q", tc.err, log.String())
		}
	}
}

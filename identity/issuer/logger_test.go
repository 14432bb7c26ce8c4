package issuer_test

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
)

func TestLogLevel(t *testing.T) {
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.LogLevel = level })
	c := loggerv1.NewLoggerClient(w.admin)
	want := func(current types.LogLevel, got *types.Logger, err error) {
		t.Helper()
		must(t, err)
		if diff := cmp.Diff(&types.Logger{CurrentLevel: current, LaunchLevel: types.LogLevel_WARN}, got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	got, err := c.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	want(types.LogLevel_WARN, got, err)
	for _, tt := range []struct {
		api  types.LogLevel
		lets slog.Level // the least that passes, where anything does
	}{
		{types.LogLevel_TRACE, slog.LevelDebug - 4},
		{types.LogLevel_DEBUG, slog.LevelDebug},
		{types.LogLevel_INFO, slog.LevelInfo},
		{types.LogLevel_WARN, slog.LevelWarn},
		{types.LogLevel_ERROR, slog.LevelError},
		{types.LogLevel_FATAL, slog.LevelError + 4},
		{types.LogLevel_PANIC, slog.LevelError + 8},
	} {
		got, err := c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: tt.api})
		want(tt.api, got, err)
		if level.Level() != tt.lets {
			t.Errorf("%v is %v, want %v", tt.api, level.Level(), tt.lets)
		}
	}
	got, err = c.ResetLogLevel(t.Context(), &loggerv1.ResetLogLevelRequest{})
	want(types.LogLevel_WARN, got, err)
	if acts := w.did("log-level", "set"); len(acts) != 7 || acts[0].ObjectID != "TRACE" || acts[0].Actor != "unix:uid:1000" {
		t.Errorf("on record: %v", acts)
	}

	for _, bad := range []types.LogLevel{types.LogLevel_UNSPECIFIED, 42} {
		_, err := c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: bad})
		wantCode(t, err, codes.InvalidArgument)
	}
	w.refuseActs(func(identity.Act) bool { return true })
	_, err = c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: types.LogLevel_PANIC})
	wantCode(t, err, codes.Unavailable)
	if level.Level() != slog.LevelWarn {
		t.Errorf("the level changed to %v, off the record", level.Level())
	}
}

func TestFixedLogLevel(t *testing.T) {
	w := newWorld(t)
	c := loggerv1.NewLoggerClient(w.admin)
	_, err := c.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	wantCode(t, err, codes.Unimplemented)
	_, err = c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: types.LogLevel_DEBUG})
	wantCode(t, err, codes.Unimplemented)
}

func TestDebugInfo(t *testing.T) {
	w := newWorld(t)
	w.join(w.token("/node/a"))
	w.create(entry("/svc/a", "/node/a", "uid:1"), entry("/svc/b", "/node/a", "uid:2"))
	got, err := debugv1.NewDebugClient(w.admin).GetInfo(t.Context(), &debugv1.GetInfoRequest{})
	must(t, err)
	entries := int32(len(w.store.Index().Entries())) // those of the token too
	if got.AgentsCount != 1 || got.EntriesCount != entries || entries < 2 || got.FederatedBundlesCount != 1 {
		t.Errorf("counts: %v", got)
	}
	if len(got.SvidChain) != 2 || got.SvidChain[0].Id.GetPath() != "/spire/server" {
		t.Fatalf("chain: %v", got.SvidChain)
	}
	if got.SvidChain[0].ExpiresAt <= w.clock.now().Unix() || got.SvidChain[1].Subject == "" {
		t.Errorf("chain: %v", got.SvidChain)
	}
}

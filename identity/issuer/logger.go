package issuer

import (
	"context"
	"log/slog"

	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
)

// loggerService is spire.api.server.logger.v1.Logger.
type loggerService struct {
	*Issuer
	loggerv1.UnimplementedLoggerServer
}

// logLevels are SPIRE's levels as slog has them, the coarsest first. slog knows
// no panic and fatal, so they are what nothing here ever logs: silence.
var logLevels = []struct {
	api  types.LogLevel
	slog slog.Level
}{
	{types.LogLevel_PANIC, slog.LevelError + 8},
	{types.LogLevel_FATAL, slog.LevelError + 4},
	{types.LogLevel_ERROR, slog.LevelError},
	{types.LogLevel_WARN, slog.LevelWarn},
	{types.LogLevel_INFO, slog.LevelInfo},
	{types.LogLevel_DEBUG, slog.LevelDebug},
	{types.LogLevel_TRACE, slog.LevelDebug - 4},
}

// apiLevel is the coarsest of SPIRE's levels that lets the same through.
func apiLevel(level slog.Level) types.LogLevel {
	for _, l := range logLevels {
		if level >= l.slog {
			return l.api
		}
	}
	return types.LogLevel_TRACE
}

// GetLogger implements loggerv1.LoggerServer.
func (s *loggerService) GetLogger(context.Context, *loggerv1.GetLoggerRequest) (*types.Logger, error) {
	if s.cfg.LogLevel == nil {
		return nil, status.Error(codes.Unimplemented, "this server's log level is fixed")
	}
	return &types.Logger{CurrentLevel: apiLevel(s.cfg.LogLevel.Level()), LaunchLevel: apiLevel(s.launchLevel)}, nil
}

// SetLogLevel implements loggerv1.LoggerServer.
func (s *loggerService) SetLogLevel(ctx context.Context, req *loggerv1.SetLogLevelRequest) (*types.Logger, error) {
	for _, l := range logLevels {
		if l.api == req.GetNewLevel() {
			return s.set(ctx, "set", l.slog)
		}
	}
	return nil, status.Errorf(codes.InvalidArgument, "new_level: %v is not a level: want PANIC, FATAL, ERROR, WARN, INFO, DEBUG or TRACE", req.GetNewLevel())
}

// ResetLogLevel implements loggerv1.LoggerServer.
func (s *loggerService) ResetLogLevel(ctx context.Context, _ *loggerv1.ResetLogLevelRequest) (*types.Logger, error) {
	return s.set(ctx, "reset", s.launchLevel)
}

// set changes the level. It is on record, since whoever silences a log may have
// a reason to.
func (s *loggerService) set(ctx context.Context, verb string, level slog.Level) (*types.Logger, error) {
	before, err := s.GetLogger(ctx, nil)
	if err != nil {
		return nil, err
	}
	err = s.record(ctx, identity.Act{
		Kind: identity.ActAdmin, Verb: verb, Object: "log-level", ObjectID: apiLevel(level).String(),
		Details: [][2]string{{"before", before.CurrentLevel.String()}},
	})
	if err != nil {
		return nil, err
	}
	s.cfg.LogLevel.Set(level)
	return s.GetLogger(ctx, nil)
}

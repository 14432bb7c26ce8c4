package issuer

import (
	"context"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// healthService is grpc.health.v1.Health.
type healthService struct {
	*Issuer
	healthv1.UnimplementedHealthServer
}

// Check implements healthv1.HealthServer: serving means able to sign, and sure
// of what to sign.
func (s *healthService) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	state := healthv1.HealthCheckResponse_SERVING
	if !s.ca.Ready() || s.store.Fresh() != nil {
		state = healthv1.HealthCheckResponse_NOT_SERVING
	}
	return &healthv1.HealthCheckResponse{Status: state}, nil
}

// List implements healthv1.HealthServer.
func (s *healthService) List(ctx context.Context, _ *healthv1.HealthListRequest) (*healthv1.HealthListResponse, error) {
	whole, err := s.Check(ctx, nil)
	if err != nil {
		return nil, err
	}
	return &healthv1.HealthListResponse{Statuses: map[string]*healthv1.HealthCheckResponse{"": whole}}, nil
}

// Watch implements healthv1.HealthServer.
func (s *healthService) Watch(*healthv1.HealthCheckRequest, healthv1.Health_WatchServer) error {
	return status.Error(codes.Unimplemented, "ask again with Check")
}

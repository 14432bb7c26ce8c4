package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

type refusing struct {
	healthv1.UnimplementedHealthServer
}

const refusal = "this cannot be put on record now, so it was not done"

func (refusing) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	return nil, status.Error(codes.Unavailable, refusal)
}

func (refusing) Watch(*healthv1.HealthCheckRequest, healthv1.Health_WatchServer) error {
	return status.Error(codes.Unavailable, refusal)
}

// A control plane that refuses has answered; one that is not there has not.
func TestAnswered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, refusing{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(listener) })
	defer serving.Wait()
	defer s.Stop()
	conn, err := grpc.NewClient("unix:"+path, append(noteAnswered(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthv1.NewHealthClient(conn)
	check := func() error {
		_, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	watch := func() error {
		stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for name, call := range map[string]func() error{"unary": check, "stream": watch} {
		err := call()
		if got := rpcError(err).Error(); status.Code(err) != codes.Unavailable || got != "the control plane answers and refuses: "+refusal {
			t.Errorf("%s: %q", name, got)
		}
	}
	s.Stop()
	for name, call := range map[string]func() error{"unary": check, "stream": watch} {
		if err := call(); errors.As(err, new(answered)) || !strings.Contains(rpcError(err).Error(), "does not answer") {
			t.Errorf("%s of a server that is gone: %v", name, err)
		}
	}
}

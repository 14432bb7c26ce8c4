package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpctest "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
)

type grpcApp struct {
	grpctest.UnimplementedTestServiceServer
	header chan metadata.MD
}

func (a *grpcApp) UnaryCall(ctx context.Context, r *grpctest.SimpleRequest) (*grpctest.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	select {
	case a.header <- md:
	default:
	}
	if s := r.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.Code), s.Message)
	}
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-sum", "1", "writ-decision-id", "forged"))
	return &grpctest.SimpleResponse{Payload: r.Payload}, nil
}

func (a *grpcApp) FullDuplexCall(s grpc.BidiStreamingServer[grpctest.StreamingOutputCallRequest, grpctest.StreamingOutputCallResponse]) error {
	// The head of the response goes before any message.
	if err := s.SendHeader(metadata.Pairs("x-early", "yes")); err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err == io.EOF {
			s.SetTrailer(metadata.Pairs("x-end", "yes"))
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&grpctest.StreamingOutputCallResponse{Payload: r.Payload}); err != nil {
			return err
		}
	}
}

func grpcPair(t *testing.T) (srv, cli *sidecar, a *grpcApp, client grpctest.TestServiceClient) {
	t.Helper()
	ca := testpki.New(t, "example.org")
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	a = &grpcApp{header: make(chan metadata.MD, 1)}
	g := grpc.NewServer()
	grpctest.RegisterTestServiceServer(g, a)
	go g.Serve(ln)
	t.Cleanup(g.Stop)

	cfg := serverConfig("unix://" + ln.Addr().String())
	cfg.Inbound.Protocol = "grpc"
	srv = start(t, ca, "/svc/orders", cfg)
	srv.SetSnapshot(peptest.Snapshot(1, "orders", serverID, peptest.Decide(func(in *policy.Input, out *policy.Decision) {
		out.Verdict = policy.Allow
		if in.Request.GRPCMethod == "EmptyCall" {
			out.Verdict = policy.Deny
		}
	})))
	cli = start(t, ca, "/svc/web", clientConfig(srv, "grpc"))
	conn, err := grpc.NewClient("passthrough:///"+cli.UpstreamAddr("orders").String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return srv, cli, a, grpctest.NewTestServiceClient(conn)
}

func TestGRPC(t *testing.T) {
	srv, _, a, client := grpcPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	t.Run("unary", func(t *testing.T) {
		var header, trailer metadata.MD
		out := metadata.AppendToOutgoingContext(ctx, "writ-source-id", "forged", "x-forwarded-client-cert", "forged")
		res, err := client.UnaryCall(out, &grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: []byte("hello")}}, grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil || string(res.Payload.Body) != "hello" {
			t.Fatalf("%v %v", res, err)
		}
		ev := srv.rec.Events()[0]
		if got := header.Get("writ-decision-id"); len(got) != 1 || got[0] != ev.DecisionID {
			t.Errorf("header %v", header)
		}
		if len(trailer.Get("x-sum")) != 1 || len(trailer.Get("writ-decision-id")) != 0 {
			t.Errorf("trailer %v", trailer)
		}
		if in := ev.Input.Request; in.Protocol != policy.GRPC || in.GRPCService != "grpc.testing.TestService" || in.GRPCMethod != "UnaryCall" {
			t.Errorf("request %+v", in)
		}
		md := <-a.header
		if got := md.Get("writ-source-id"); len(got) != 1 || got[0] != clientID {
			t.Errorf("the application saw %v", md)
		}
	})
	t.Run("status of the application", func(t *testing.T) {
		_, err := client.UnaryCall(ctx, &grpctest.SimpleRequest{ResponseStatus: &grpctest.EchoStatus{Code: int32(codes.FailedPrecondition), Message: "not now"}})
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "not now" {
			t.Errorf("%v", err)
		}
	})
	t.Run("denied", func(t *testing.T) {
		var header, trailer metadata.MD
		_, err := client.EmptyCall(ctx, &grpctest.Empty{}, grpc.Header(&header), grpc.Trailer(&trailer))
		events := srv.rec.Events()
		ev := events[len(events)-1]
		if s := status.Convert(err); s.Code() != codes.PermissionDenied || !strings.Contains(s.Message(), ev.DecisionID) {
			t.Errorf("%v", err)
		}
		if ev.Outcome != auditv1.Outcome_OUTCOME_DENY {
			t.Errorf("event %v", ev.Outcome)
		}
		if got := metadata.Join(header, trailer).Get("writ-decision-id"); len(got) != 1 || got[0] != ev.DecisionID {
			t.Errorf("header %v, trailer %v", header, trailer)
		}
	})
	t.Run("stream", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := stream.Header(); err != nil || len(h.Get("x-early")) != 1 {
			t.Fatalf("header before any message: %v %v", h, err)
		}
		for i := range 20 {
			want := fmt.Sprint(i)
			if err := stream.Send(&grpctest.StreamingOutputCallRequest{Payload: &grpctest.Payload{Body: []byte(want)}}); err != nil {
				t.Fatal(err)
			}
			if r, err := stream.Recv(); err != nil || string(r.Payload.Body) != want {
				t.Fatalf("%v %v", r, err)
			}
		}
		stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("end of the stream: %v", err)
		}
		if len(stream.Trailer().Get("x-end")) != 1 {
			t.Errorf("trailer %v", stream.Trailer())
		}
	})
	t.Run("large message", func(t *testing.T) {
		body := make([]byte, 3<<20)
		res, err := client.UnaryCall(ctx, &grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: body}})
		if err != nil || len(res.Payload.Body) != len(body) {
			t.Errorf("%v", err)
		}
	})
	t.Run("right ends in mid-stream", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		srv.SetSnapshot(peptest.Snapshot(2, "orders", serverID, peptest.Verdict(policy.Deny)))
		if _, err := stream.Recv(); err == nil || err == io.EOF || ctx.Err() != nil {
			t.Errorf("the stream outlived the right to it: %v", err)
		}
	})
}

func TestGRPCAppAway(t *testing.T) {
	ca := testpki.New(t, "example.org")
	cfg := serverConfig("unix:///nowhere/app.sock")
	cfg.Inbound.Protocol = "grpc"
	srv := start(t, ca, "/svc/orders", cfg)
	srv.SetSnapshot(allowAll(1))
	cli := start(t, ca, "/svc/web", clientConfig(srv, "grpc"))
	conn, err := grpc.NewClient("passthrough:///"+cli.UpstreamAddr("orders").String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = grpctest.NewTestServiceClient(conn).EmptyCall(t.Context(), &grpctest.Empty{})
	if status.Code(err) != codes.Unavailable || len(srv.rec.Events()) != 1 || len(cli.rec.Events()) != 0 {
		t.Errorf("%v; %d and %d events", err, len(srv.rec.Events()), len(cli.rec.Events()))
	}
}

// At a gRPC service a request cannot choose to be decided as something else.
func TestOnlyGRPCAtAGRPCService(t *testing.T) {
	srv, _, _, _ := grpcPair(t)
	cfg := clientConfig(srv, "http")
	cli := startWith(t, testpki.NewSource(mustSVID(srv), mustBundle(t, srv)), cfg)
	var h2c = newH2C(t)
	res, err := h2c.Get("http://" + cli.UpstreamAddr("orders").String() + "/grpc.testing.TestService/UnaryCall")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	events := srv.rec.Events()
	if last := events[len(events)-1]; res.StatusCode != 415 || last.Outcome != auditv1.Outcome_OUTCOME_REFUSED {
		t.Errorf("%d, event %v", res.StatusCode, last.Outcome)
	}
}

// Connections that have reached their age end between calls, and no call fails
// of it.
func TestGRPCConnectionAge(t *testing.T) {
	srv, _, _, client := grpcPair(t)
	srv.inbound.cfg.MaxConnectionAge = 5 * time.Millisecond
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				if _, err := client.UnaryCall(t.Context(), &grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: []byte("hello")}}); err != nil {
					t.Errorf("call failed: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	ports := map[int]bool{}
	for _, ev := range srv.rec.Events() {
		ports[ev.Input.Connection.PeerPort] = true
	}
	t.Logf("%d connections", len(ports))
}

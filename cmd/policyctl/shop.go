package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
)

// newShopServiceCmd runs one service of the example shop. Each is an ordinary
// server that knows nothing of Writ: it reads who called from the request
// headers, and finds the services it calls at the addresses in its environment.
func newShopServiceCmd(*app) *cobra.Command {
	return &cobra.Command{
		Use:       "shop-service NAME",
		Short:     "Run one service of the example shop",
		Hidden:    true,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"web", "catalog", "orders", "payments", "reports"},
		RunE: func(cmd *cobra.Command, args []string) error {
			ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", os.Getenv("PORT")))
			if err != nil {
				return fmt.Errorf("shop service %s: %w", args[0], err)
			}
			if args[0] == "payments" {
				return servePayments(cmd.Context(), ln)
			}
			s := &shop{name: args[0], catalog: os.Getenv("WRIT_UPSTREAM_CATALOG"), client: &http.Client{Timeout: 5 * time.Second}}
			if addr := os.Getenv("WRIT_UPSTREAM_PAYMENTS"); addr != "" {
				if s.payments, err = grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
					return fmt.Errorf("shop service %s: %w", args[0], err)
				}
				defer s.payments.Close()
			}
			return s.serve(cmd.Context(), ln)
		},
	}
}

// Requests and replies of the shop are small; nothing legitimate takes longer.
const (
	shopHeadTimeout = 5 * time.Second
	shopStopTimeout = time.Second
	shopReplyLimit  = 1 << 20
)

type shop struct {
	name     string
	catalog  string // address at which this service finds the catalog
	payments *grpc.ClientConn
	client   *http.Client
}

// reply is what every service of the shop answers: who it is, who asked, and
// what it has to say.
type reply struct {
	Service  string `json:"service"`
	Caller   string `json:"caller"`
	Decision string `json:"decision"`
	Request  string `json:"request"`
	Body     any    `json:"body"`
}

func (s *shop) serve(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	switch s.name {
	case "web":
		mux.HandleFunc("/", s.front)
	case "orders":
		mux.HandleFunc("POST /orders", s.order)
		mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
			s.answer(w, r, http.StatusOK, map[string]any{"order": r.PathValue("id"), "product": "42", "state": "paid"})
		})
	case "catalog":
		mux.HandleFunc("GET /products", s.always([]map[string]any{{"id": "42", "name": "tea", "stock": 7}}))
		mux.HandleFunc("GET /products/{id}", s.always(map[string]any{"id": "42", "name": "tea", "stock": 7}))
		mux.HandleFunc("PUT /products/{id}/stock", s.always(map[string]any{"id": "42", "stock": 6}))
	case "reports":
		mux.HandleFunc("GET /sales", s.always(map[string]any{"orders": 1, "revenue": "4.20"}))
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: shopHeadTimeout}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), shopStopTimeout)
		defer cancel()
		stopped <- srv.Shutdown(ctx)
	})
	err := srv.Serve(ln)
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

func (s *shop) answer(w http.ResponseWriter, r *http.Request, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(reply{
		Service: s.name, Caller: r.Header.Get("Writ-Source-Id"), Decision: r.Header.Get("Writ-Decision-Id"),
		Request: r.Method + " " + r.URL.Path, Body: body,
	})
}

func (s *shop) always(body any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, http.StatusOK, body) }
}

// front shows what the catalog has.
func (s *shop) front(w http.ResponseWriter, r *http.Request) {
	products, err := s.fetch(r.Context(), http.MethodGet, "/products")
	if err != nil {
		s.answer(w, r, http.StatusBadGateway, map[string]any{"error": err.Error()})
		return
	}
	s.answer(w, r, http.StatusOK, products)
}

// order takes from the stock and charges: two more requests through the mesh,
// under the name of orders.
func (s *shop) order(w http.ResponseWriter, r *http.Request) {
	stock, err := s.fetch(r.Context(), http.MethodPut, "/products/42/stock")
	receipt := &structpb.Struct{}
	if err == nil {
		err = s.payments.Invoke(r.Context(), "/shop.payments.v1.Payments/Charge", &structpb.Struct{}, receipt)
	}
	if err != nil {
		s.answer(w, r, http.StatusBadGateway, map[string]any{"error": err.Error()})
		return
	}
	s.answer(w, r, http.StatusCreated, map[string]any{"order": "1001", "stock": stock, "receipt": receipt.AsMap()})
}

// fetch calls the catalog.
func (s *shop) fetch(ctx context.Context, method, path string) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.catalog+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, shopReplyLimit))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("catalog: %s", resp.Status)
	}
	return data, nil
}

// servePayments serves shop.payments.v1.Payments. Its messages are structs, so
// that the example needs no generated code.
func servePayments(ctx context.Context, ln net.Listener) error {
	method := func(name string, body map[string]any) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(&structpb.Struct{}); err != nil {
				return nil, err
			}
			md, _ := metadata.FromIncomingContext(ctx)
			body := map[string]any{"service": "payments", "request": name, "body": body}
			for key, header := range map[string]string{"caller": "writ-source-id", "decision": "writ-decision-id"} {
				if v := md.Get(header); len(v) > 0 {
					body[key] = v[0]
				}
			}
			return structpb.NewStruct(body)
		}}
	}
	srv := grpc.NewServer()
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "shop.payments.v1.Payments",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			method("Charge", map[string]any{"charged": "4.20"}),
			method("Refund", map[string]any{"refunded": "4.20"}),
		},
	}, nil)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		// A stream that stays open must not hold up the end.
		timer := time.AfterFunc(shopStopTimeout, srv.Stop)
		defer timer.Stop()
		srv.GracefulStop()
	})
	err := srv.Serve(ln)
	if !stop() {
		<-done
	}
	return err
}

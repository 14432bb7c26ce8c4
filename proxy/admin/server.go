package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Config is what a Server is made of.
type Config struct {
	// Addr is ip:port with a loopback ip.
	Addr    string
	Metrics *Metrics
	// Waiting says what the program is still waiting for, or what keeps it from
	// its work; empty is ready.
	Waiting func() []string
	Log     *slog.Logger
}

// Server answers operators.
type Server struct {
	http *http.Server
	ln   net.Listener
}

// Loopback checks that addr, ip:port, can only be reached from this machine.
func Loopback(addr string) error {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not ip:port", addr)
	}
	if !ap.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("%s is not a loopback address: others could reach it", ap.Addr())
	}
	return nil
}

// Listen opens the address. Serve must follow.
func Listen(cfg Config) (*Server, error) {
	if err := Loopback(cfg.Addr); err != nil {
		return nil, fmt.Errorf("admin listener: %w", err)
	}
	ln, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("admin listener: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", cfg.Metrics.handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"ok": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		waiting := cfg.Waiting()
		status := http.StatusOK
		if len(waiting) > 0 {
			status = http.StatusServiceUnavailable
		} else {
			waiting = []string{}
		}
		writeJSON(w, status, map[string]any{"ready": len(waiting) == 0, "waiting": waiting})
	})
	s := &Server{ln: ln, http: &http.Server{
		Handler:           localOnly(mux),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
	}}
	if cfg.Log != nil {
		s.http.ErrorLog = slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	}
	return s, nil
}

// localOnly refuses requests that name another host: a web page that was made
// to resolve to loopback (DNS rebinding) must not read the metrics.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
			http.Error(w, "loopback only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.ln); ctx.Err() == nil {
		return fmt.Errorf("admin listener: %w", err)
	}
	return nil
}

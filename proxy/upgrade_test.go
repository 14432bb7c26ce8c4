package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/writ-dev/writ/internal/testpki"
)

// Only a WebSocket becomes a tunnel: through any other the application would
// get requests that nobody decided.
func TestOnlyWebSocketTunnels(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv := server(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.Header.Get("Upgrade"); token != "" {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", token)
			rw.Flush()
			return
		}
		fmt.Fprintf(w, "%s %v", r.Method, r.Header["Http2-Settings"])
	}))
	for _, tc := range []struct {
		method, version, tokens string
		status                  int
	}{
		{"GET", "1.1", "websocket", 101},
		{"GET", "1.1", "WebSocket", 101},
		{"GET", "1.1", "h2c", 200},
		{"GET", "1.1", "TLS/1.3", 200},
		{"GET", "1.1", "websocket, h2c", 200},
		{"GET", "1.1", "websocket/13", 200},
		{"GET", "1.0", "websocket", 200},
		{"POST", "1.1", "websocket", 200},
	} {
		t.Run(tc.method+" "+tc.version+" "+strings.ReplaceAll(tc.tokens, "/", "_"), func(t *testing.T) {
			res, body := exchange(t, ca, srv, fmt.Sprintf(
				"%s / HTTP/%s\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 0\r\n\r\n", tc.method, tc.version, tc.tokens))
			if res.StatusCode != tc.status {
				t.Errorf("status %d, want %d", res.StatusCode, tc.status)
			}
			if want := tc.method + " []"; tc.status == 200 && body != want {
				t.Errorf("the application saw %q, want %q", body, want)
			}
		})
	}
}

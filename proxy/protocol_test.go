package proxy

import (
	"net/http"
	"testing"

	"github.com/writ-dev/writ/internal/testpki"
)

// What HTTP/2 itself forbids does not reach the application; net/http answers
// it, and this is the one answer without an event.
func TestForbiddenByHTTP2(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the application was reached") }))
	for name, tc := range map[string]struct {
		want   string
		fields []string
	}{
		"connection": {"400", []string{":authority", "orders", "connection", "close"}},
		"te":         {"400", []string{":authority", "orders", "te", "gzip"}},
		"userinfo":   {"reset PROTOCOL_ERROR", []string{":authority", "user@orders"}},
	} {
		t.Run(name, func(t *testing.T) {
			if status, _ := exchange2(t, ca, s, append([]string{":method", "GET", ":scheme", "https", ":path", "/"}, tc.fields...)...); status != tc.want {
				t.Errorf("%s, want %s", status, tc.want)
			}
		})
	}
	if events := s.rec.Events(); len(events) != 0 {
		t.Errorf("recorded after all, which the documentation denies: %+v", events)
	}
}

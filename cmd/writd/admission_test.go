package main

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"

	"github.com/writ-dev/writ/internal/writdconf"
)

// What waits at the issuer can be seen, by queue and class.
func TestAdmissionMetrics(t *testing.T) {
	a := newDomain(t, "a.test", func(*writdconf.Config) {})
	rec := httptest.NewRecorder()
	a.healthHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`writd_admission_waiting{class="renewal",queue="signing"} 0`,
		`writd_admission_waiting{class="first",queue="handshake"} 0`,
		`writd_admission_wait_seconds_bucket{class="first",queue="writing",le="0.01"} [0-9]`,
		`writd_admission_wait_seconds_count{class="bulk",queue="writing"} [0-9]`,
		`writd_admission_refused_total{class="renewal",queue="signing",reason="displaced"} 0`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(rec.Body.String()) {
			t.Errorf("no metric %s", want)
		}
	}
}

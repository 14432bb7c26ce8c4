package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-dev/writ/internal/health"
)

// healthHandler serves /metrics, /healthz and /readyz.
func (w *writd) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(w.metrics(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, nil) })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, w.problems()) })
	return mux
}

// addConditions adds to health what every control plane needs. The issuer adds its
// own.
func (w *writd) addConditions() {
	w.health.Add(func() health.State {
		// There is no other reader of Updated.
		s := health.State{Changed: w.source.Updated()}
		svid, err := w.source.GetX509SVID()
		switch {
		case err != nil:
			s.Problem = fmt.Errorf("identity: %w", err)
		case !time.Now().Before(svid.Certificates[0].NotAfter):
			s.Problem = fmt.Errorf("identity: the X509-SVID of this control plane has expired, at %s", svid.Certificates[0].NotAfter.UTC().Format(time.RFC3339))
		default:
			s.Until = svid.Certificates[0].NotAfter
		}
		return s
	})
	w.health.Add(func() health.State {
		turned, err := w.record.err()
		return health.State{Problem: err, Changed: turned}
	})
}

// problems say why this control plane is not fit to serve.
func (w *writd) problems() []string {
	var list []string
	for _, err := range w.health.Problems() {
		list = append(list, err.Error())
	}
	return list
}

func answer(rw http.ResponseWriter, problems []string) {
	rw.Header().Set("Content-Type", "application/json")
	if len(problems) > 0 {
		rw.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(rw).Encode(map[string]any{"ok": len(problems) == 0, "problems": problems})
}

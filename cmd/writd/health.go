package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-dev/writ/internal/health"
)

// healthHandler serves /metrics, /healthz and /readyz.
func (w *writd) healthHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "writd", Name: name, Help: help}, value))
	}
	if w.record.ledger != nil {
		gauge("audit_events", "Events in the ledger.", func() float64 { return float64(w.record.status().GetEvents()) })
		gauge("audit_bytes", "Bytes that the ledger takes on disk.", func() float64 { return float64(w.record.status().GetBytes()) })
		gauge("audit_head_age_seconds", "Age of the last signed head.", func() float64 {
			return ledgerAge(w.record.status(), time.Now()).Seconds()
		})
		gauge("audit_lag_events", "Events that recorders have and the collector does not.", func() float64 {
			var sum uint64
			for _, n := range auditLag(w.record.status()) {
				sum += n
			}
			return float64(sum)
		})
	}
	if w.decision != nil {
		gauge("policy_revision", "Number of the policy revision in force; 0 is none.", func() float64 {
			if a := w.decision.Active(); a != nil {
				return float64(a.Revision.Number)
			}
			return 0
		})
		gauge("enforcement_points", "Enforcement points that follow policy.", func() float64 {
			n := 0
			for _, r := range w.decision.Reports() {
				if r.Connected {
					n++
				}
			}
			return float64(n)
		})
	}
	w.recheckMetrics(reg)
	w.traces.Register(reg, "writd_")
	if w.issuer != nil {
		reg.MustRegister(federationMetrics{w}, registryMetrics{w})
	}
	gauge("svid_expires_seconds", "Unix time at which the own X509-SVID expires.", func() float64 {
		svid, err := w.source.GetX509SVID()
		if err != nil {
			return 0
		}
		return float64(svid.Certificates[0].NotAfter.Unix())
	})

	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
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
	if l := w.record.ledger; l != nil {
		w.health.Add(func() health.State {
			if err := l.Err(); err != nil {
				return health.State{Problem: fmt.Errorf("audit: %w", err)}
			}
			return health.State{Changed: l.Troubled()}
		})
	}
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

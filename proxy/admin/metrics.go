package admin

import (
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/policy"
)

// outcomes are the labels of writ_requests_total. Refused requests never came
// to a decision.
var outcomes = [...]string{
	auditv1.Outcome_OUTCOME_ALLOW:     "allow",
	auditv1.Outcome_OUTCOME_DENY:      "deny",
	auditv1.Outcome_OUTCOME_UNDEFINED: "undefined",
	auditv1.Outcome_OUTCOME_ERROR:     "error",
	auditv1.Outcome_OUTCOME_REFUSED:   "refused",
	auditv1.Outcome_OUTCOME_FAILURE:   "failure",
}

// Metrics counts what a sidecar does.
type Metrics struct {
	registry *prometheus.Registry
	// By outcome and by whether the outcome was applied.
	enforced, observed [len(outcomes)]prometheus.Counter
	unrecorded         prometheus.Counter
	latency            prometheus.Histogram
	handshakes         *prometheus.CounterVec
	outbound           *prometheus.CounterVec
	admission          prometheus.Counter
}

// NewMetrics makes the metrics of one sidecar, in a registry of their own.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		unrecorded: prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_unrecorded_total", Help: "Requests turned away because the record could not be written."}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "writ_decision_seconds", Help: "Time that a decision took, without its record.",
			Buckets: []float64{1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1},
		}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_handshake_failures_total", Help: "Inbound connections refused before any request, by cause."}, []string{"cause"}),
		outbound:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_upstream_failures_total", Help: "Outbound requests that could not be carried to their upstream."}, []string{"upstream"}),
		admission:  prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_outbound_refused_total", Help: "Local connections refused because their owner may not use the listener."}),
	}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_requests_total", Help: "Inbound requests by outcome, and by whether the outcome was applied (enforced) or only recorded."}, []string{"outcome", "enforced"})
	for o, name := range outcomes {
		if name != "" {
			m.enforced[o] = requests.WithLabelValues(name, "true")
			m.observed[o] = requests.WithLabelValues(name, "false")
		}
	}
	m.registry.MustRegister(requests, m.unrecorded, m.latency, m.handshakes, m.outbound, m.admission)
	// The collectors package would link database/sql for these two.
	m.Gauge("go_goroutines", "Goroutines that exist.", func() float64 { return float64(runtime.NumGoroutine()) })
	m.Gauge("process_resident_memory_bytes", "Resident memory.", residentBytes)
	return m
}

// residentBytes is the second field of /proc/self/statm, in bytes; 0 where
// there is none.
func residentBytes() float64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return float64(pages) * float64(os.Getpagesize())
}

// Decided counts an inbound request.
func (m *Metrics) Decided(res pep.Result) {
	if !res.Recorded {
		m.unrecorded.Inc()
		return
	}
	o := res.Outcome
	if int(o) >= len(outcomes) || outcomes[o] == "" {
		return
	}
	if o != auditv1.Outcome_OUTCOME_REFUSED {
		m.latency.Observe(res.Latency.Seconds())
	}
	if res.Mode == policy.Observe && res.Verdict != policy.Allow {
		m.observed[o].Inc()
		return
	}
	m.enforced[o].Inc()
}

// HandshakeFailed counts an inbound connection refused.
func (m *Metrics) HandshakeFailed(cause string) { m.handshakes.WithLabelValues(cause).Inc() }

// UpstreamFailed counts an outbound request that was not carried.
func (m *Metrics) UpstreamFailed(name string) { m.outbound.WithLabelValues(name).Inc() }

// NotAdmitted counts a local connection refused.
func (m *Metrics) NotAdmitted() { m.admission.Inc() }

// Gauge adds a value that is read when it is asked for.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

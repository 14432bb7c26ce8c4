package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/workload"
)

// metrics are few, and none is per workload: a node may have thousands.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	rejected prometheus.Counter
	failed   *prometheus.CounterVec
}

func newMetrics(node *agent.Agent) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_agent_workload_api_calls_total", Help: "Calls of the Workload API and of SDS that ended, by method and status.",
		}, []string{"method", "code"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_agent_sds_rejected_total", Help: "Secrets that an Envoy did not take; the log says why.",
		}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_agent_workload_attestor_failures_total", Help: "Attestations of workloads in which a method failed or took too long, by method.",
		}, []string{"attestor"}),
	}
	m.registry.MustRegister(m.calls, m.rejected, m.failed)
	gauge := func(name, help string, value func(agent.Status) float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_agent_" + name, Help: help},
			func() float64 { return value(node.Status()) }))
	}
	counter := func(name, help string, value func(agent.Status) uint64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "writ_agent_" + name, Help: help},
			func() float64 { return float64(value(node.Status())) }))
	}
	gauge("entries", "Entries that the node is entitled to.", func(s agent.Status) float64 { return float64(s.Entries) })
	gauge("svids", "Entries with a valid X509-SVID.", func(s agent.Status) float64 { return float64(s.SVIDs) })
	gauge("templates", "Templates that the node is entitled to.", func(s agent.Status) float64 { return float64(s.Templates) })
	gauge("template_instances", "Names by templates that workloads hold.", func(s agent.Status) float64 { return float64(s.Instances) })
	gauge("template_svids", "Names by templates with a valid X509-SVID.", func(s agent.Status) float64 { return float64(s.InstanceSVIDs) })
	for _, reason := range template.Reasons() {
		if reason == template.Missing || reason == template.Taken {
			continue // the issuer's to find
		}
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "writ_agent_template_refusals_total", ConstLabels: prometheus.Labels{"reason": string(reason)},
			Help: "Times that a template gave a workload no identity because of a value; the log says which.",
		}, func() float64 { return float64(node.TemplateRefusals(reason)) }))
	}
	gauge("svid_expiry_timestamp_seconds", "When the agent's own SVID expires.", func(s agent.Status) float64 { return unixTime(s.Expires) })
	gauge("last_sync_timestamp_seconds", "When the entries were last known to be current.", func(s agent.Status) float64 { return unixTime(s.LastSync) })
	gauge("watching", "1 while the issuer pushes changes, 0 while entries are polled.", func(s agent.Status) float64 {
		if s.Watching {
			return 1
		}
		return 0
	})
	gauge("revocations", "Revocations in force.", func(s agent.Status) float64 { return float64(s.Revocations) })
	gauge("revocations_current_timestamp_seconds", "When the issuer last said that these are all revocations; 0 for never.", func(s agent.Status) float64 { return unixTime(s.RevocationsCurrentAt) })
	gauge("authorities_without_crl", "X.509 authorities of the trust bundle that have no CRL, where sds.crl is on: Envoys that get CRLs refuse what they signed.", func(s agent.Status) float64 { return float64(s.WithoutCRL) })
	gauge("issuer_clock_ahead_seconds", "How far the issuer's clock was ahead of this machine's when it was last heard, with what the network took.", func(s agent.Status) float64 { return s.IssuerAhead.Seconds() })
	counter("syncs_total", "Syncs that succeeded.", func(s agent.Status) uint64 { return s.Syncs })
	counter("sync_errors_total", "Syncs that failed.", func(s agent.Status) uint64 { return s.SyncErrors })
	counter("entries_received_total", "Entries that the issuer sent; what the agent holds already is not sent again.", func(s agent.Status) uint64 { return s.EntriesReceived })
	counter("svids_signed_total", "X509-SVIDs received.", func(s agent.Status) uint64 { return s.Signed })
	counter("sign_errors_total", "Requests for X509-SVIDs that failed, in whole or in part.", func(s agent.Status) uint64 { return s.SignErrors })
	counter("jwt_svids_signed_total", "JWT-SVIDs received.", func(s agent.Status) uint64 { return s.JWTSigned })
	counter("renewals_total", "Renewals of the agent's own SVID.", func(s agent.Status) uint64 { return s.Renewals })
	return m
}

func unixTime(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1e3
}

func (m *metrics) observe(method string, code codes.Code) {
	m.calls.WithLabelValues(method[strings.LastIndexByte(method, '/')+1:], code.String()).Inc()
}

func (m *metrics) attestorFailed(method string) { m.failed.WithLabelValues(method).Inc() }

func (m *metrics) watch(api *workload.Server) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_agent_workload_api_connections", Help: "Open connections."},
			func() float64 { return float64(api.Connections()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_agent_workload_api_streams", Help: "Calls being answered."},
			func() float64 { return float64(api.Streams()) }),
	)
}

// adminHandler serves /metrics, /healthz (the process answers) and /readyz (the
// agent can serve its workloads).
func adminHandler(node *agent.Agent, m *metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, _, problem := node.Health(); problem != nil {
			http.Error(w, problem.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

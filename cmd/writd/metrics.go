package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/internal/sqldb"
)

// metrics are those of this control plane, of the roles that run.
// docs/reference/metrics.md has them all.
func (w *writd) metrics() *prometheus.Registry {
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
	reg.MustRegister(databaseMetrics{w})
	w.recheckMetrics(reg)
	w.traces.Register(reg, "writd_")
	if w.issuer != nil {
		reg.MustRegister(federationMetrics{w}, authorityMetrics{w}, registryMetrics{w}, admissionMetrics{w})
		gauge("templates_withheld", "1 while no template is served, because those in the database are not what the issuer wrote.", func() float64 {
			if w.store.TemplatesWithheld() {
				return 1
			}
			return 0
		})
		for _, reason := range template.Reasons() {
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "writd", Name: "template_refusals_total", ConstLabels: prometheus.Labels{"reason": string(reason)},
				Help: "Times that a template gave an agent no identity because of a value; the log says which.",
			}, func() float64 { return float64(w.issuer.TemplateRefusals(reason)) }))
		}
	}
	gauge("svid_expires_seconds", "Unix time at which the own X509-SVID expires.", func() float64 {
		svid, err := w.source.GetX509SVID()
		if err != nil {
			return 0
		}
		return float64(svid.Certificates[0].NotAfter.Unix())
	})
	return reg
}

// databaseMetrics are what the database says when it is asked, once for each
// scrape.
type databaseMetrics struct{ w *writd }

// databaseTimeout is how long a scrape waits for the database.
const databaseTimeout = 2 * time.Second

var (
	databaseUp = prometheus.NewDesc("writd_database_up", "1 if the database answers within two seconds, 0 if not.", nil, nil)
	lagChanges = prometheus.NewDesc("writd_registry_lag_changes", "Changes of the registry that are in the database and not known here yet. Replicas only, while the database answers.", nil, nil)
	lagSeconds = prometheus.NewDesc("writd_registry_lag_seconds", "Time since what is known here was last all that is in the database. Replicas only.", nil, nil)
)

func (m databaseMetrics) Describe(c chan<- *prometheus.Desc) {
	c <- databaseUp
	c <- lagChanges
	c <- lagSeconds
}

func (m databaseMetrics) Collect(c chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	gauge := func(desc *prometheus.Desc, value float64) {
		c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	answered := func(err error) {
		up := 1.0
		if err != nil {
			up = 0
		}
		gauge(databaseUp, up)
	}
	if m.w.store == nil || !m.w.store.Shared() {
		answered(sqldb.Answers(ctx, m.w.db))
		return
	}
	lag, err := m.w.store.Lag(ctx)
	answered(err)
	gauge(lagSeconds, lag.Age.Seconds())
	if err == nil {
		gauge(lagChanges, float64(lag.Changes))
	}
}

// authorityMetrics are the signing authorities of this control plane.
type authorityMetrics struct{ w *writd }

var (
	authorityCount  = prometheus.NewDesc("writd_authorities", "Signing authorities of this control plane, by type (x509, jwt) and state (prepared, active, old, tainted).", []string{"type", "state"}, nil)
	authorityExpiry = prometheus.NewDesc("writd_authority_expiry_timestamp_seconds", "When a signing authority expires.", []string{"type", "state", "id"}, nil)
)

func (m authorityMetrics) Describe(c chan<- *prometheus.Desc) {
	c <- authorityCount
	c <- authorityExpiry
}

func (m authorityMetrics) Collect(c chan<- prometheus.Metric) {
	for kind, name := range map[ca.Kind]string{ca.X509: "x509", ca.JWT: "jwt"} {
		count := map[ca.State]float64{ca.Prepared: 0, ca.Active: 0, ca.Old: 0, ca.Tainted: 0}
		for _, a := range m.w.authorities.Authorities(kind) {
			count[a.State]++
			c <- prometheus.MustNewConstMetric(authorityExpiry, prometheus.GaugeValue, float64(a.ExpiresAt.Unix()), name, string(a.State), a.ID)
		}
		for state, n := range count {
			c <- prometheus.MustNewConstMetric(authorityCount, prometheus.GaugeValue, n, name, string(state))
		}
	}
}

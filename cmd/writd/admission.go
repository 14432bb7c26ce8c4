package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/identity/admit"
)

// admissionMetrics say what waits at the issuer, how long it waited, and what was
// refused.
type admissionMetrics struct{ w *writd }

var (
	admissionWaiting = prometheus.NewDesc("writd_admission_waiting", "Requests of agents that wait for their turn.", []string{"queue", "class"}, nil)
	admissionWait    = prometheus.NewDesc("writd_admission_wait_seconds", "How long requests waited for their turn; most of them not at all.", []string{"queue", "class"}, nil)
	admissionRefused = prometheus.NewDesc("writd_admission_refused_total", "Requests that had no turn, by reason.", []string{"queue", "class", "reason"}, nil)
)

func (m admissionMetrics) Describe(c chan<- *prometheus.Desc) {
	c <- admissionWaiting
	c <- admissionWait
	c <- admissionRefused
}

func (m admissionMetrics) Collect(c chan<- prometheus.Metric) {
	a := m.w.issuer.Admission()
	for _, class := range admit.Classes {
		collectQueue(c, "signing", class, &a.Signing[class])
		collectQueue(c, "writing", class, &a.Writing[class])
		collectQueue(c, "handshake", class, &a.Handshakes[class])
	}
}

func collectQueue(c chan<- prometheus.Metric, queue string, class admit.Class, s *admit.Stats) {
	c <- prometheus.MustNewConstMetric(admissionWaiting, prometheus.GaugeValue, float64(s.Waiting), queue, class.String())
	count, buckets := s.AtOnce, map[float64]uint64{}
	for n, bound := range admit.WaitBounds {
		count += s.Waited[n]
		buckets[bound.Seconds()] = count
	}
	count += s.Waited[len(admit.WaitBounds)]
	c <- prometheus.MustNewConstHistogram(admissionWait, count, s.WaitSum.Seconds(), buckets, queue, class.String())
	for _, reason := range admit.Reasons {
		c <- prometheus.MustNewConstMetric(admissionRefused, prometheus.CounterValue, float64(s.Refused[reason]), queue, class.String(), reason.String())
	}
}

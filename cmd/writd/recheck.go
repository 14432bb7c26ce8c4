package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy/recheck"
)

// openRecheck makes the sampler where both the decisions and the sources that
// made them are at hand.
func (w *writd) openRecheck() (err error) {
	if w.decision == nil || w.record.ledger == nil || w.cfg.RecheckSample == 0 {
		return nil
	}
	cfg := recheck.Config{
		Every: w.cfg.RecheckSample, Content: w.decision.Content, Agrees: audit.SameDecision,
		Policy: w.decision, Emit: w.emit, Actor: identity.ServerID(w.td).String(), Log: w.log,
	}
	w.recheck, err = recheck.New(cfg)
	return err
}

// sample is what the collector calls for each stored batch; nil where nothing
// is sampled. It picks, and leaves the work to the sampler.
func (w *writd) sample() func(*audit.Batch) {
	if w.recheck == nil {
		return nil
	}
	return func(b *audit.Batch) {
		for i, r := range b.Records {
			if audit.KindOf(r.GetEvent()) != auditv1.Kind_KIND_DECISION || !w.recheck.Due() {
				continue
			}
			event, stream, epoch, sequence := r.GetEvent(), b.Stream, b.Epoch, b.First+uint64(i)
			w.recheck.Offer(func() (recheck.Recorded, error) {
				return recordedDecision(event, stream, epoch, sequence)
			})
		}
	}
}

// recordedDecision reads an event as a decision that can be made again.
func recordedDecision(event []byte, stream audit.Stream, epoch uint32, sequence uint64) (r recheck.Recorded, err error) {
	ev := new(auditv1.Event)
	if err := proto.Unmarshal(event, ev); err != nil {
		return r, err
	}
	if r.Input, r.Missing, err = audit.InputOf(ev); err != nil {
		return r, err
	}
	d, err := audit.DecisionOf(ev)
	if err != nil {
		return r, err
	}
	ids := audit.NewDecisionIDs(stream, epoch)
	r.ID, r.By, r.Decision = ids.At(sequence), stream.String(), *d
	return r, nil
}

// recheckMetrics counts the sample by its result.
func (w *writd) recheckMetrics(reg *prometheus.Registry) {
	if w.recheck == nil {
		return
	}
	for result, value := range map[string]func(recheck.Counts) uint64{
		"agreed":   func(c recheck.Counts) uint64 { return c.Agreed },
		"diverged": func(c recheck.Counts) uint64 { return c.Diverged },
		"skipped":  func(c recheck.Counts) uint64 { return c.Skipped },
		"unknown":  func(c recheck.Counts) uint64 { return c.Unknown },
		"dropped":  func(c recheck.Counts) uint64 { return c.Dropped },
	} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "writd", Name: "recheck_decisions_total", ConstLabels: prometheus.Labels{"result": result},
			Help: "Recorded decisions that were due to be decided again, by result; diverged must stay 0.",
		}, func() float64 { return float64(value(w.recheck.Counts())) }))
	}
}

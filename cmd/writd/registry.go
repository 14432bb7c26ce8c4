package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// openStore opens the registry. Nothing of a database is served that a control
// plane with the same key did not leave.
func (w *writd) openStore(ctx context.Context) (*sqlstore.Store, error) {
	config := sqlstore.Config{
		KeyFile: w.path("keys", "registry.key"), SeenFile: w.path("registry.seen"), Adopt: w.cfg.AdoptEntries, Log: w.log,
		Record: func(ctx context.Context, acts []identity.Act) error {
			acts = slices.Clone(acts)
			for n := range acts {
				acts[n].Actor = cmp.Or(acts[n].Actor, identity.IssuerID(w.td).String())
			}
			return w.emitAll(ctx, acts)
		},
	}
	if w.cfg.Database != nil && w.cfg.Database.RegistryKeyFile != "" {
		config.KeyFile = w.cfg.Database.RegistryKeyFile
	}
	store, err := sqlstore.Open(ctx, w.db, config)
	if foreign := (*sqlstore.ForeignError)(nil); errors.As(err, &foreign) {
		return nil, fmt.Errorf("%w. Nothing of it is served. If you looked at its table registry_entries and want it as it is, start once with --adopt-entries %s", err, foreign.Digest)
	}
	return store, err
}

// registryProblems say what of the registry is not served. That nothing is, is
// among the conditions of health.
func (w *writd) registryProblems() []string {
	if w.issuer == nil {
		return nil
	}
	list, more := w.issuer.Withheld()
	if len(list) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("registry: %d entries are not served, since the database does not hold what was written, %s among them: policyctl entry list --withheld", len(list)+more, list[0].ID)}
}

// registryMetrics are of the issuer's registry.
type registryMetrics struct{ w *writd }

var (
	entriesWithheld = prometheus.NewDesc("writd_entries_withheld", "Registration entries that are not served, because their rows in the database are not what the issuer wrote, by cause.", []string{"cause"}, nil)
	registryAlarms  = prometheus.NewDesc("writd_registry_alarms_total", "Rows of entries, agents, join tokens, federation and authorities that were found not to be what the issuer wrote.", nil, nil)
	registryRefused = prometheus.NewDesc("writd_registry_refused", "1 while nothing of the database is served, because it is not what a control plane with this key left.", nil, nil)
)

func (m registryMetrics) Describe(c chan<- *prometheus.Desc) {
	c <- entriesWithheld
	c <- registryAlarms
	c <- registryRefused
}

func (m registryMetrics) Collect(c chan<- prometheus.Metric) {
	list, more := m.w.issuer.Withheld()
	count := map[string]int{sqlstore.Unmarked: more, sqlstore.Stale: 0, sqlstore.Missing: 0, sqlstore.Unreadable: 0}
	for _, held := range list {
		count[held.Reason]++
	}
	for cause, n := range count {
		c <- prometheus.MustNewConstMetric(entriesWithheld, prometheus.GaugeValue, float64(n), cause)
	}
	c <- prometheus.MustNewConstMetric(registryAlarms, prometheus.CounterValue, float64(m.w.issuer.RegistryAlarms()))
	refused := 0.0
	if m.w.issuer.Doubt() != nil {
		refused = 1
	}
	c <- prometheus.MustNewConstMetric(registryRefused, prometheus.GaugeValue, refused)
}

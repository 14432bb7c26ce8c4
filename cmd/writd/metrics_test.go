package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/internal/promtest"
	"github.com/writ-dev/writ/internal/tracing"
	"github.com/writ-dev/writ/internal/writdconf"
)

// The page of metrics has all of them, and none that is not.
func TestMetricsPage(t *testing.T) {
	d := newDomain(t, "a.test", func(c *writdconf.Config) { c.Tracing = &tracing.Config{Endpoint: "http://127.0.0.1:1"} })
	promtest.OnPage(t, "../../docs/reference/metrics.md", "writd_", d.metrics())
}

// scrape is what /metrics says, by name and labels.
func (d *domain) scrape() map[string]string {
	d.t.Helper()
	rec := httptest.NewRecorder()
	d.healthHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		d.t.Fatalf("/metrics: %d %s", rec.Code, rec.Body)
	}
	values := map[string]string{}
	for line := range strings.Lines(rec.Body.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			values[name] = value
		}
	}
	return values
}

func (d *domain) counted(kind string, want map[ca.State]string) {
	d.t.Helper()
	values := d.scrape()
	for _, state := range []ca.State{ca.Prepared, ca.Active, ca.Old, ca.Tainted} {
		name := fmt.Sprintf(`writd_authorities{state="%s",type="%s"}`, state, kind)
		n := "0"
		if want[state] != "" {
			n = want[state]
		}
		if values[name] != n {
			d.t.Errorf("%s %q, want %s", name, values[name], n)
		}
	}
}

func TestAuthorityMetrics(t *testing.T) {
	d := newDomain(t, "a.test", func(*writdconf.Config) {})
	for kind, name := range map[ca.Kind]string{ca.X509: "x509", ca.JWT: "jwt"} {
		first := d.authorities.Authorities(kind)[0]
		d.counted(name, map[ca.State]string{ca.Active: "1"})
		next, err := d.authorities.PrepareAuthority(t.Context(), kind, "test")
		if err != nil {
			t.Fatal(err)
		}
		d.counted(name, map[ca.State]string{ca.Active: "1", ca.Prepared: "1"})
		if _, err := d.authorities.ActivateAuthority(t.Context(), kind, next.ID, "test"); err != nil {
			t.Fatal(err)
		}
		d.counted(name, map[ca.State]string{ca.Active: "1", ca.Old: "1"})
		if _, err := d.authorities.TaintAuthority(t.Context(), kind, first.ID, "test"); err != nil {
			t.Fatal(err)
		}
		d.counted(name, map[ca.State]string{ca.Active: "1", ca.Tainted: "1"})
		values := d.scrape()
		for state, a := range map[ca.State]ca.AuthorityState{ca.Active: next, ca.Tainted: first} {
			expiry := fmt.Sprintf(`writd_authority_expiry_timestamp_seconds{id="%s",state="%s",type="%s"}`, a.ID, state, name)
			if want := fmt.Sprint(float64(a.ExpiresAt.Unix())); values[expiry] != want {
				t.Errorf("%s %q, want %s", expiry, values[expiry], want)
			}
		}
	}
	if up := d.scrape()["writd_database_up"]; up != "1" {
		t.Errorf("database up: %q", up)
	}
	// One SQLite file has nobody to be behind.
	if lag, ok := d.scrape()["writd_registry_lag_seconds"]; ok {
		t.Errorf("lag of %q", lag)
	}
	if err := d.db.Close(); err != nil {
		t.Fatal(err)
	}
	if up := d.scrape()["writd_database_up"]; up != "0" {
		t.Errorf("closed database up: %q", up)
	}
}

// A database that is away is a metric, and what is known of the lag stays one.
func TestDatabaseMetrics(t *testing.T) {
	server := pgtest.New(t)
	d := newDomain(t, "a.test", func(c *writdconf.Config) {
		c.Replica, c.Database = "r1", &writdconf.Database{Postgres: server.Database(t)}
	})
	values := d.scrape()
	if _, ok := values["writd_registry_lag_seconds"]; !ok || values["writd_database_up"] != "1" || values["writd_registry_lag_changes"] != "0" {
		t.Errorf("up %q, lag %q changes, %q seconds", values["writd_database_up"], values["writd_registry_lag_changes"], values["writd_registry_lag_seconds"])
	}
	server.Stop(t)
	defer server.Start(t)
	values = d.scrape()
	_, changes := values["writd_registry_lag_changes"]
	if _, ok := values["writd_registry_lag_seconds"]; !ok || values["writd_database_up"] != "0" || changes {
		t.Errorf("without a database: up %q, lag %q changes, %q seconds", values["writd_database_up"], values["writd_registry_lag_changes"], values["writd_registry_lag_seconds"])
	}
}

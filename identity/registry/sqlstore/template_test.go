package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/internal/pgtest"
)

func fullTemplate(t testing.TB) registry.Template {
	t.Helper()
	parent := path("/node/a")
	id, err := template.ParseSPIFFEID(parent.TrustDomain(), "spiffe://example.org/node/{agent:k8s_psat:agent_node_name}/app/{k8s:pod-label:example.org/name}")
	if err != nil {
		t.Fatal(err)
	}
	dns, err := template.ParseDNSName("{k8s:sa}.internal")
	if err != nil {
		t.Fatal(err)
	}
	return registry.Template{
		Rule:     template.Rule{SPIFFEID: id, DNSNames: []*template.Pattern{dns}, Selectors: []string{"k8s:ns:shop", "unix:user:\"quoted\" ü"}},
		ParentID: parent, X509SVIDTTL: time.Minute, JWTSVIDTTL: 30 * time.Second, FederatesWith: []string{"other.org"}, Hint: "h",
	}
}

func sameTemplates(t *testing.T, want, got []*registry.Template) {
	t.Helper()
	same := func(a, b *registry.Template) bool {
		return a.Equal(b) && a.RevisionNumber == b.RevisionNumber && a.CreatedAt.Equal(b.CreatedAt)
	}
	if !slices.EqualFunc(want, got, same) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTemplatesSurviveRestart(t *testing.T) { onEach(t, testTemplatesSurviveRestart) }

func testTemplatesSurviveRestart(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	var made, changed *registry.Template
	update(t, s, func(tx *sqlstore.Tx) (err error) {
		made, err = tx.CreateTemplate(fullTemplate(t))
		return err
	})
	if made.ID == "" || made.RevisionNumber != 1 || !made.CreatedAt.Equal(now.Truncate(time.Second)) || s.Index().Template(made.ID) != made {
		t.Errorf("made as %+v", made)
	}
	sameTemplates(t, s.Index().Templates(), open(t, again()).Index().Templates())

	next := *made
	update(t, s, func(tx *sqlstore.Tx) error {
		same, err := tx.UpdateTemplate(next)
		if err == nil && same.RevisionNumber != 1 {
			t.Errorf("an update that changes nothing makes revision %d", same.RevisionNumber)
		}
		return err
	})
	next.Hint, next.Rule.DNSNames = "other", nil
	update(t, s, func(tx *sqlstore.Tx) (err error) {
		changed, err = tx.UpdateTemplate(next)
		return err
	})
	if changed.RevisionNumber != 2 || !changed.CreatedAt.Equal(made.CreatedAt) || changed.Hint != "other" {
		t.Errorf("changed to %+v", changed)
	}
	sameTemplates(t, s.Index().Templates(), open(t, again()).Index().Templates())
	update(t, s, func(tx *sqlstore.Tx) error {
		if found := tx.TemplatesFederatingWith(domain("other.org")); len(found) != 1 {
			t.Errorf("%d templates federate with other.org", len(found))
		}
		if found := tx.TemplatesFederatingWith(domain("org")); len(found) != 0 {
			t.Errorf("%d templates federate with org", len(found))
		}
		_, err := tx.DeleteTemplate(made.ID)
		return err
	})
	if s.Index().Template(made.ID) != nil || len(open(t, again()).Index().Templates()) != 0 {
		t.Error("it is still there")
	}
	for name, do := range map[string]func(tx *sqlstore.Tx) error{
		"delete": func(tx *sqlstore.Tx) error { _, err := tx.DeleteTemplate(made.ID); return err },
		"update": func(tx *sqlstore.Tx) error { _, err := tx.UpdateTemplate(next); return err },
	} {
		if err := s.Update(t.Context(), do); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s of one that is gone: %v", name, err)
		}
	}
}

func TestTemplateUniqueness(t *testing.T) { onEach(t, testTemplateUniqueness) }

func testTemplateUniqueness(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	update(t, s, func(tx *sqlstore.Tx) error {
		first, err := tx.CreateTemplate(fullTemplate(t))
		if err != nil {
			return err
		}
		var similar *sqlstore.SimilarTemplateError
		probe := fullTemplate(t)
		probe.Hint = "another"
		if _, err := tx.CreateTemplate(probe); !errors.As(err, &similar) || similar.Template.ID != first.ID {
			t.Errorf("similar: %v", err)
		}
		probe.ID, probe.ParentID = first.ID, path("/node/b")
		if _, err := tx.CreateTemplate(probe); !errors.As(err, &similar) {
			t.Errorf("same ID: %v", err)
		}
		probe.ID = ""
		second, err := tx.CreateTemplate(probe)
		if err != nil {
			return err
		}
		probe = *second
		probe.ParentID = first.ParentID
		if _, err := tx.UpdateTemplate(probe); !errors.As(err, &similar) {
			t.Errorf("updated to what another is: %v", err)
		}
		for n := range sqlstore.MaxTemplates - 2 {
			probe.ID, probe.ParentID = "", path(fmt.Sprint("/n/", n))
			if _, err := tx.CreateTemplate(probe); err != nil {
				return err
			}
		}
		probe.ParentID = path("/n/more")
		if _, err := tx.CreateTemplate(probe); !errors.Is(err, sqlstore.ErrTooManyTemplates) {
			t.Errorf("one too many: %v", err)
		}
		return nil
	})
	sameTemplates(t, s.Index().Templates(), open(t, again()).Index().Templates())
}

// What one replica does to templates, the others see, and tell the agents that it
// concerns; who follows from afar reads everything.
func TestTemplatesAcrossReplicas(t *testing.T) {
	dsn := pgtest.DSN(t)
	all := replicas(t, 2, dsn)
	a, b := all[0], all[1]
	update(t, a, func(tx *sqlstore.Tx) error {
		for n := range 2 {
			if err := tx.PutAgent(registry.Agent{ID: agentID(n), ExpiresAt: now.Add(time.Hour)}); err != nil {
				return err
			}
		}
		return nil
	})
	await(t, b, 1)
	concerned, other := b.Index().Watch(agentID(0)), b.Index().Watch(agentID(1))
	defer concerned.Close()
	defer other.Close()
	var made *registry.Template
	update(t, a, func(tx *sqlstore.Tx) (err error) {
		r := fullTemplate(t)
		r.ParentID = agentID(0)
		made, err = tx.CreateTemplate(r)
		return err
	})
	<-concerned.C()
	sameTemplates(t, a.Index().Templates(), b.Index().AuthorizedTemplates(agentID(0), now))
	update(t, a, func(tx *sqlstore.Tx) (err error) {
		next := *made
		next.Hint = "changed"
		made, err = tx.UpdateTemplate(next)
		return err
	})
	<-concerned.C()
	if got := b.Index().Template(made.ID); got.Hint != "changed" {
		t.Errorf("the other replica has %+v", got)
	}
	update(t, b, func(tx *sqlstore.Tx) error { _, err := tx.DeleteTemplate(made.ID); return err })
	await(t, a, 4)
	if len(a.Index().Templates())+len(b.Index().Templates()) != 0 {
		t.Error("it is still there")
	}
	select {
	case <-other.C():
		t.Error("an agent was told of what does not concern it")
	default:
	}
}

// A replica that is too far behind to follow the log has what the database has.
func TestTemplatesOfOneFarBehind(t *testing.T) {
	dsn := pgtest.DSN(t)
	late := open(t, openPostgres(t, dsn))
	writer := open(t, openPostgres(t, dsn))
	update(t, writer, func(tx *sqlstore.Tx) error { _, err := tx.CreateTemplate(fullTemplate(t)); return err })
	db := openPostgres(t, dsn)
	if _, err := db.ExecContext(t.Context(), `UPDATE registry_revision SET log_floor = 1`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `DELETE FROM registry_changes`); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer ended.Wait()
	defer cancel()
	ended.Go(func() { _ = late.Follow(ctx, slog.New(slog.DiscardHandler)) })
	await(t, late, 1)
	sameTemplates(t, writer.Index().Templates(), late.Index().Templates())
}

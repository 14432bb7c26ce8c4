package sqlstore

import (
	"cmp"
	"crypto/hmac"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/template"
)

// MaxTemplates is how many templates there can be. Each names as many workloads as
// there are, and every agent that it is for has it.
const MaxTemplates = 1000

// ErrTooManyTemplates: there are MaxTemplates.
var ErrTooManyTemplates = fmt.Errorf("there are %d templates, as many as there can be", MaxTemplates)

// SimilarTemplateError says that a template with the same ID, or with the same
// pattern, parent and selectors, is there already.
type SimilarTemplateError struct{ Template *registry.Template }

func (e *SimilarTemplateError) Error() string {
	return fmt.Sprintf("template %s has the same id, or the same spiffe_id, parent_id and selectors", e.Template.ID)
}

const templateColumns = `id, spiffe_id, parent_id, selectors, x509_svid_ttl, jwt_svid_ttl, federates_with, dns_names, hint, revision, created_at`

// sealedTemplates is what this process knows of the templates in the database.
type sealedTemplates struct {
	revision uint64
	seal     string
	// withheld tells that the rows are not what the issuer left. Then none of them is
	// served.
	withheld bool
}

// templateRows are all rows of templates; broken is why one of them is none.
type templateRows struct {
	list   []*registry.Template // sorted by ID
	broken error
}

func (t *Tx) readTemplates() (all templateRows, err error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT `+templateColumns+` FROM registry_templates ORDER BY id`)
	if err != nil {
		return all, fmt.Errorf("load templates: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		// Who writes the database may write anything.
		r, err := scanTemplate(rows)
		if err != nil {
			all.broken = err
			continue
		}
		all.list = append(all.list, r)
	}
	if err := rows.Err(); err != nil {
		return all, fmt.Errorf("load templates: %w", err)
	}
	slices.SortFunc(all.list, func(x, y *registry.Template) int { return cmp.Compare(x.ID, y.ID) })
	return all, nil
}

// judgeTemplates returns the templates of the database if they are what the issuer
// left, and otherwise none. fits tells that the registry's seal fits, which their
// revision is part of.
func (s *Store) judgeTemplates(st state, fits bool, rows templateRows) []*registry.Template {
	before := s.named
	named := sealedTemplates{revision: st.templates, seal: st.templatesSeal}
	never := st.templates == 0 && len(rows.list) == 0 && rows.broken == nil
	sealed := st.templates != 0 && rows.broken == nil && hmac.Equal([]byte(s.key.sealTemplates(st.templates, rows.list)), []byte(st.templatesSeal))
	named.withheld = !never && !(fits && sealed)
	if s.setNamed(named); !named.withheld {
		return rows.list
	}
	if !before.withheld {
		s.say(templatesAct(st, len(rows.list), rows.broken))
	}
	return nil
}

// templatesAct is the alarm that templates are not served.
func templatesAct(st state, count int, broken error) identity.Act {
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "withheld", Object: "templates", ObjectID: fmt.Sprint(st.templates),
		Details: [][2]string{{"rows", fmt.Sprint(count)}},
		Reason:  "the templates in the database are not those that this control plane left: none is served until they are made again",
	}
	if broken != nil {
		act.Details = append(act.Details, [2]string{"unreadable", fmt.Sprintf("%.200s", broken)})
	}
	return act
}

// TemplatesWithheld tells that the templates in the database are not what the issuer
// left, so that none of them is served.
func (s *Store) TemplatesWithheld() bool {
	return s.unnamed.Load()
}

func (s *Store) setNamed(n sealedTemplates) {
	s.named = n
	s.unnamed.Store(n.withheld)
}

// followTemplates adds to a change what others did to templates. The registry's
// seal fits.
func (s *Store) followTemplates(t *Tx, st state, change *registry.Change) error {
	rows, err := t.readTemplates()
	if err != nil {
		return err
	}
	now := map[string]bool{}
	for _, r := range s.judgeTemplates(st, true, rows) {
		now[r.ID] = true
		if old := s.index.Template(r.ID); old == nil || old.Digest() != r.Digest() {
			change.Templates = append(change.Templates, registry.TemplateChange{Old: old, New: r})
		}
	}
	for _, old := range s.index.Templates() {
		if !now[old.ID] {
			change.Templates = append(change.Templates, registry.TemplateChange{Old: old})
		}
	}
	s.tell(t.ctx)
	return nil
}

// sealTemplates writes what the transaction made of the templates, all of them, so
// that nothing else is left beside them. What is withheld is not sealed by the way.
func (t *Tx) sealTemplates() (sealedTemplates, error) {
	named, revision := t.s.named, t.change.Revision
	if len(t.change.Templates) == 0 {
		if named.withheld {
			named = sealedTemplates{revision: revision, withheld: true}
		}
		return named, nil
	}
	if err := t.exec(`DELETE FROM registry_templates`); err != nil {
		return named, fmt.Errorf("write templates: %w", err)
	}
	all := t.sortedTemplates()
	for part := range slices.Chunk(all, rowsAtOnce) {
		var values []any
		for _, r := range part {
			var err error
			if values, err = templateValues(values, r); err != nil {
				return named, fmt.Errorf("write template %s: %w", r.ID, err)
			}
		}
		if err := t.exec(`INSERT INTO registry_templates (`+templateColumns+`) VALUES `+repeat(`(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, len(part)), values...); err != nil {
			return named, fmt.Errorf("write templates: %w", err)
		}
	}
	return sealedTemplates{revision: revision, seal: t.s.key.sealTemplates(revision, all)}, nil
}

// set is the templates that are to be there. The rows are not asked: they might be
// somebody else's.
func (t *Tx) set() map[string]*registry.Template {
	if t.templates == nil {
		t.templates = map[string]*registry.Template{}
		for _, r := range t.s.index.Templates() {
			t.templates[r.ID] = r
		}
	}
	return t.templates
}

func (t *Tx) sortedTemplates() []*registry.Template {
	return slices.SortedFunc(maps.Values(t.set()), func(x, y *registry.Template) int { return cmp.Compare(x.ID, y.ID) })
}

// put makes a template what it is to be, nil for none.
func (t *Tx) put(id string, next *registry.Template) {
	old := t.set()[id]
	if next == nil {
		delete(t.set(), id)
	} else {
		t.set()[id] = next
	}
	t.change.Templates = append(t.change.Templates, registry.TemplateChange{Old: old, New: next})
}

// Template returns a template, or registry.ErrNotFound.
func (t *Tx) Template(id string) (*registry.Template, error) {
	if r := t.set()[id]; r != nil {
		return r, nil
	}
	return nil, registry.ErrNotFound
}

// CreateTemplate adds a template and returns it as it is now: with an ID, if it had
// none, a revision and the time of its making. The error may be a
// *SimilarTemplateError, or ErrTooManyTemplates.
func (t *Tx) CreateTemplate(r registry.Template) (*registry.Template, error) {
	for _, other := range t.set() {
		if other.ID == r.ID || other.Similar(&r) {
			return nil, &SimilarTemplateError{other}
		}
	}
	if len(t.set()) >= MaxTemplates {
		return nil, ErrTooManyTemplates
	}
	if r.ID == "" {
		id, err := uuid.NewRandom()
		if err != nil {
			return nil, err
		}
		r.ID = id.String()
	}
	r.CreatedAt, r.RevisionNumber = t.now.UTC().Truncate(time.Second), int64(t.change.Revision)
	t.put(r.ID, &r)
	return &r, nil
}

// UpdateTemplate replaces the template with r's ID, keeps when it was made, and
// returns it as it is now. An update that changes nothing keeps the revision too.
// The error may be registry.ErrNotFound or a *SimilarTemplateError.
func (t *Tx) UpdateTemplate(r registry.Template) (*registry.Template, error) {
	old, err := t.Template(r.ID)
	if err != nil {
		return nil, fmt.Errorf("update template %s: %w", r.ID, err)
	}
	if old.Equal(&r) {
		return old, nil
	}
	for _, other := range t.set() {
		if other.ID != r.ID && other.Similar(&r) {
			return nil, &SimilarTemplateError{other}
		}
	}
	r.CreatedAt, r.RevisionNumber = old.CreatedAt, int64(t.change.Revision)
	t.put(r.ID, &r)
	return &r, nil
}

// DeleteTemplate removes a template and returns what it was.
func (t *Tx) DeleteTemplate(id string) (*registry.Template, error) {
	old, err := t.Template(id)
	if err != nil {
		return nil, fmt.Errorf("delete template %s: %w", id, err)
	}
	t.put(id, nil)
	return old, nil
}

// TemplatesFederatingWith returns the templates that federate with a trust domain.
func (t *Tx) TemplatesFederatingWith(td spiffeid.TrustDomain) []*registry.Template {
	return slices.DeleteFunc(t.sortedTemplates(), func(r *registry.Template) bool { return !slices.Contains(r.FederatesWith, td.Name()) })
}

// templateValues appends the values of a row in the order of templateColumns.
func templateValues(values []any, r *registry.Template) ([]any, error) {
	selectors, err := encodeStrings(r.Rule.Selectors)
	if err != nil {
		return nil, err
	}
	federates, err := encodeStrings(r.FederatesWith)
	if err != nil {
		return nil, err
	}
	dns, err := encodeStrings(registry.Texts(r.Rule.DNSNames))
	if err != nil {
		return nil, err
	}
	return append(values, r.ID, r.Rule.SPIFFEID.String(), r.ParentID.String(), selectors, int64(r.X509SVIDTTL/time.Second), int64(r.JWTSVIDTTL/time.Second),
		federates, dns, r.Hint, r.RevisionNumber, unix(r.CreatedAt)), nil
}

func scanTemplate(row scanner) (*registry.Template, error) {
	var r registry.Template
	var id, parent, selectors, federates, dns string
	var x509TTL, jwtTTL, created int64
	err := row.Scan(&r.ID, &id, &parent, &selectors, &x509TTL, &jwtTTL, &federates, &dns, &r.Hint, &r.RevisionNumber, &created)
	if err != nil {
		return nil, err
	}
	if r.ParentID, err = spiffeid.FromString(parent); err != nil {
		return nil, fmt.Errorf("template %s: parent_id: %w", r.ID, err)
	}
	// A template and its parent are of one trust domain.
	if r.Rule.SPIFFEID, err = template.ParseSPIFFEID(r.ParentID.TrustDomain(), id); err != nil {
		return nil, fmt.Errorf("template %s: spiffe_id: %w", r.ID, err)
	}
	if r.Rule.Selectors, err = decodeStrings(selectors); err != nil {
		return nil, fmt.Errorf("template %s: selectors: %w", r.ID, err)
	}
	if r.FederatesWith, err = decodeStrings(federates); err != nil {
		return nil, fmt.Errorf("template %s: federates_with: %w", r.ID, err)
	}
	names, err := decodeStrings(dns)
	if err != nil {
		return nil, fmt.Errorf("template %s: dns_names: %w", r.ID, err)
	}
	for n, text := range names {
		p, err := template.ParseDNSName(text)
		if err != nil {
			return nil, fmt.Errorf("template %s: dns_names[%d]: %w", r.ID, n, err)
		}
		r.Rule.DNSNames = append(r.Rule.DNSNames, p)
	}
	r.X509SVIDTTL, r.JWTSVIDTTL = time.Duration(x509TTL)*time.Second, time.Duration(jwtTTL)*time.Second
	r.CreatedAt = fromUnix(created)
	return &r, nil
}

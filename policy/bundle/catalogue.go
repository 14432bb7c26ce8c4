package bundle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
)

// BreakGlassLimit is the longest that a break-glass entry may allow. It is also
// the shortest time between two entries that allow the same, and the longest
// that one may be granted ahead: otherwise a row of entries would be one that
// allows for years.
const BreakGlassLimit = time.Hour

// maxBreakGlass bounds the entries of data.writ.break_glass.
const maxBreakGlass = 64

// BreakGlass is an entry of data.writ.break_glass.
type BreakGlass struct {
	ID        string
	Service   string
	SourceIDs []string
	Granted   time.Time
	Expires   time.Time
	Approvers []string
	Ticket    string
}

// Catalogue is what the signed data says about services, and about what policy
// may ask beside its input.
type Catalogue struct {
	Services   map[string]policy.Service
	BreakGlass []BreakGlass
	Outside    Outside
}

// of is the part of the catalogue that is about the services, and about
// builtins that look outside.
func (c Catalogue) of(services, builtins []string) Catalogue {
	part := Catalogue{Services: map[string]policy.Service{}, Outside: c.Outside.of(builtins)}
	for _, name := range services {
		part.Services[name] = c.Services[name]
	}
	for _, b := range c.BreakGlass {
		if slices.Contains(services, b.Service) {
			part.BreakGlass = append(part.BreakGlass, b)
		}
	}
	return part
}

// Catalogue reads data.writ of data, which is what Data returned.
func (c Content) Catalogue(data map[string]any) (Catalogue, []policy.Problem) {
	r := &catalogueReader{content: c}
	cat := Catalogue{Services: map[string]policy.Service{}}
	writ, _ := data["writ"].(map[string]any)
	r.each(writ, "services", func(name string, entry map[string]any) {
		cat.Services[name] = r.service(name, entry)
	})
	r.each(writ, "outside", func(name string, entry map[string]any) { r.outside(&cat.Outside, name, entry) })
	if entries, _ := writ["break_glass"].(map[string]any); len(entries) > maxBreakGlass {
		r.fail([]string{"break_glass"}, "more than %d entries: remove those that expired", maxBreakGlass)
		return cat, r.problems
	}
	r.each(writ, "break_glass", func(id string, entry map[string]any) {
		cat.BreakGlass = append(cat.BreakGlass, r.breakGlass(id, entry, cat.Services))
	})
	r.apart(cat.BreakGlass)
	return cat, r.problems
}

type catalogueReader struct {
	content  Content
	problems []policy.Problem
}

func (r *catalogueReader) fail(at []string, format string, args ...any) {
	if len(r.problems) == maxProblems {
		return
	}
	full := append([]string{"writ"}, at...)
	p := policy.Problem{Code: policy.ProblemCatalogue, Message: strings.Join(at, ".") + ": " + fmt.Sprintf(format, args...)}
	// A key that is missing is reported where it should be.
	for n := len(full); n > 0 && p.File == ""; n-- {
		p.File, p.Line, p.Column = r.content.Locate(full[:n]...)
	}
	r.problems = append(r.problems, p)
}

func (r *catalogueReader) each(writ map[string]any, kind string, read func(string, map[string]any)) {
	value, ok := writ[kind]
	if !ok {
		return
	}
	entries, ok := value.(map[string]any)
	if !ok {
		r.fail([]string{kind}, "want an object, one entry by name")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		entry, ok := entries[name].(map[string]any)
		if !ok {
			r.fail([]string{kind, name}, "want an object")
			continue
		}
		// The name becomes part of rule ids and of default SPIFFE IDs.
		if err := spiffeid.ValidatePathSegment(name); err != nil {
			r.fail([]string{kind, name}, "a name is made of letters, digits, '.', '_' and '-'")
			continue
		}
		read(name, entry)
	}
}

func (r *catalogueReader) service(name string, entry map[string]any) policy.Service {
	at := func(key string) []string { return []string{"services", name, key} }
	r.known(at, entry, "spiffe_ids", "mode", "observe_until", "path")
	s := policy.Service{Name: name, Mode: policy.Enforce, SPIFFEIDs: r.spiffeIDs(at("spiffe_ids"), entry["spiffe_ids"])}
	switch r.word(at("mode"), entry, "enforce", "enforce", "observe") {
	case "observe":
		s.Mode = policy.Observe
		s.ObserveUntil = r.time(at("observe_until"), entry["observe_until"])
	default:
		if _, ok := entry["observe_until"]; ok {
			r.fail(at("observe_until"), "is only for mode observe")
		}
	}
	s.AllowDoubleSlash = r.word(at("path"), entry, "strict", "strict", "allow-double-slash") == "allow-double-slash"
	return s
}

func (r *catalogueReader) breakGlass(id string, entry map[string]any, services map[string]policy.Service) BreakGlass {
	at := func(key string) []string { return []string{"break_glass", id, key} }
	r.known(at, entry, "service", "source_ids", "granted", "expires", "approvers", "ticket")
	b := BreakGlass{
		ID:        id,
		SourceIDs: r.spiffeIDs(at("source_ids"), entry["source_ids"]),
		Granted:   r.time(at("granted"), entry["granted"]),
		Expires:   r.time(at("expires"), entry["expires"]),
		Approvers: r.texts(at("approvers"), entry["approvers"]),
	}
	b.Service, _ = entry["service"].(string)
	if _, ok := services[b.Service]; !ok {
		r.fail(at("service"), "%q is not in the catalogue%s", b.Service, nearmiss.Hint(b.Service, slices.Collect(maps.Keys(services))))
	}
	if b.Ticket, _ = entry["ticket"].(string); strings.TrimSpace(b.Ticket) == "" {
		r.fail(at("ticket"), "want the ticket that this belongs to")
	}
	distinct := map[string]bool{}
	for _, who := range b.Approvers {
		distinct[strings.ToLower(strings.TrimSpace(who))] = true
	}
	if delete(distinct, ""); len(distinct) < 2 {
		r.fail(at("approvers"), "want two different people")
	}
	if d := b.Expires.Sub(b.Granted); !b.Granted.IsZero() && !b.Expires.IsZero() && (d <= 0 || d > BreakGlassLimit) {
		r.fail(at("expires"), "must be after granted and at most %v later, not %v", BreakGlassLimit, d)
	}
	return b
}

// apart checks that entries for one service and source do not overlap or follow
// one another at once.
func (r *catalogueReader) apart(entries []BreakGlass) {
	inOrder := slices.SortedStableFunc(slices.Values(entries), func(a, b BreakGlass) int { return a.Granted.Compare(b.Granted) })
	last := map[[2]string]BreakGlass{} // by service and source, the one that expires last
	for _, b := range inOrder {
		if b.Granted.IsZero() || b.Expires.IsZero() {
			continue // Reported already.
		}
		told := false
		for _, source := range b.SourceIDs {
			key := [2]string{b.Service, source}
			before, ok := last[key]
			if ok && !told && b.Granted.Sub(before.Expires) < BreakGlassLimit {
				r.fail([]string{"break_glass", b.ID, "granted"}, "less than %v after break_glass.%s expires, which is for the same service and %q",
					BreakGlassLimit, before.ID, source)
				told = true
			}
			if !ok || b.Expires.After(before.Expires) {
				last[key] = b
			}
		}
	}
}

// GrantedAhead are the break-glass entries of the content that are granted too
// far ahead of now, the time of activation.
func (c Content) GrantedAhead(cat Catalogue, now time.Time) []policy.Problem {
	r := &catalogueReader{content: c}
	for _, b := range cat.BreakGlass {
		if b.Granted.After(now.Add(BreakGlassLimit)) {
			r.fail([]string{"break_glass", b.ID, "granted"}, "more than %v ahead: the glass is broken when it is needed", BreakGlassLimit)
		}
	}
	return r.problems
}

func (r *catalogueReader) known(at func(string) []string, entry map[string]any, keys ...string) {
	for _, key := range slices.Sorted(maps.Keys(entry)) {
		if !slices.Contains(keys, key) {
			r.fail(at(key), "unknown key%s", nearmiss.Hint(key, keys))
		}
	}
}

func (r *catalogueReader) word(at []string, entry map[string]any, fallback string, words ...string) string {
	value, ok := entry[at[len(at)-1]]
	if !ok {
		return fallback
	}
	word, _ := value.(string)
	if !slices.Contains(words, word) {
		r.fail(at, "want %s, got %v", strings.Join(words, " or "), value)
	}
	return word
}

// time accepts RFC 3339 and, as midnight UTC, a date. A break-glass entry's
// own rules read RFC 3339 only, which a date is not.
func (r *catalogueReader) time(at []string, value any) time.Time {
	text, _ := value.(string)
	t, err := time.Parse(time.RFC3339, text)
	if err != nil && at[0] == "services" {
		t, err = time.Parse(time.DateOnly, text)
	}
	if err != nil {
		r.fail(at, "want a time such as 2030-01-31T12:00:00Z")
	}
	return t.UTC()
}

func (r *catalogueReader) texts(at []string, value any) []string {
	items, ok := value.([]any)
	if !ok || len(items) == 0 {
		r.fail(at, "want a list that is not empty")
	}
	texts := make([]string, 0, len(items))
	for _, item := range items {
		text, ok := item.(string)
		if !ok {
			r.fail(at, "want texts in the list")
		}
		texts = append(texts, text)
	}
	return texts
}

func (r *catalogueReader) spiffeIDs(at []string, value any) []string {
	ids := r.texts(at, value)
	for i, text := range ids {
		if id, err := spiffeid.FromString(text); err != nil || id.Path() == "" {
			r.fail(at, "%q is not the SPIFFE ID of a workload", text)
		}
		if slices.Contains(ids[:i], text) {
			r.fail(at, "%q is there twice", text)
		}
	}
	return ids
}

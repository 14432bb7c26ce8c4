package registry

import (
	"reflect"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Each field of an entry is in its digest, so that none can be changed under it.
// A field that is added and is in no digest fails this test.
func TestDigestHoldsEverything(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	at := time.Unix(1_900_000_000, 0)
	base := func() *Entry {
		return &Entry{
			ID: "id", SPIFFEID: spiffeid.RequireFromPath(td, "/svc/a"), ParentID: spiffeid.RequireFromPath(td, "/node/a"),
			Selectors: []Selector{{"unix", "uid:1"}, {"unix", "uid:2"}}, X509SVIDTTL: time.Minute, JWTSVIDTTL: time.Minute,
			FederatesWith: []string{"a.org", "b.org"}, DNSNames: []string{"a", "b"}, Hint: "hint", ExpiresAt: at, RevisionNumber: 1, CreatedAt: at,
		}
	}
	digests := map[[32]byte]string{base().Digest(): "itself"}
	add := func(name string, e *Entry) {
		t.Helper()
		if other := digests[e.Digest()]; other != "" {
			t.Errorf("%s has the digest of %s", name, other)
		}
		digests[e.Digest()] = name
	}
	fields := reflect.TypeFor[Entry]()
	for n := range fields.NumField() {
		e := base()
		field := reflect.ValueOf(e).Elem().Field(n)
		switch v := field.Addr().Interface().(type) {
		case *string:
			*v += "x"
		case *bool:
			*v = !*v
		case *int64:
			*v++
		case *time.Duration:
			*v += time.Second
		case *time.Time:
			*v = v.Add(time.Second)
		case *spiffeid.ID:
			*v = spiffeid.RequireFromPath(td, v.Path()+"x")
		case *[]string:
			*v = append(*v, "x")
		case *[]Selector:
			*v = append(*v, Selector{"unix", "x"})
		default:
			t.Fatalf("%s: a %T, which this test does not know", fields.Field(n).Name, v)
		}
		add(fields.Field(n).Name, e)
	}
	// What is beside each other does not run together.
	for name, change := range map[string]func(*Entry){
		"text moved":         func(e *Entry) { e.FederatesWith, e.DNSNames = []string{"a.org"}, []string{"b.org", "a", "b"} },
		"items joined":       func(e *Entry) { e.DNSNames = []string{"ab"} },
		"selector cut other": func(e *Entry) { e.Selectors = []Selector{{"unix", "uid:1unix"}, {"", "uid:2"}} },
		"never expires":      func(e *Entry) { e.ExpiresAt = time.Time{} },
		"no names":           func(e *Entry) { e.DNSNames = nil },
	} {
		e := base()
		change(e)
		add(name, e)
	}
	if e := base(); e.Digest() != base().Digest() {
		t.Error("one entry has two digests")
	}
}

package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/templatev1"
)

// Whatever an issuer sends in a sync, no workload gets a name of another trust
// domain, the name of the trust domain itself, or an entry that asks nothing of
// it.
func FuzzSyncReply(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	web := &types.SPIFFEID{TrustDomain: "example.org", Path: "/svc/web"}
	for _, e := range []*types.Entry{
		{Id: "1", SpiffeId: web, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}, FederatesWith: []string{"other.org"}, RevisionNumber: 3},
		{Id: "1", SpiffeId: web},
		{Id: "2", SpiffeId: &types.SPIFFEID{TrustDomain: "evil.org", Path: "/svc/web"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}},
		{SpiffeId: web, StoreSvid: true, Selectors: []*types.Selector{{Type: "spiffe_id", Value: "x"}, {}}},
	} {
		data, _ := proto.Marshal(&entryv1.SyncAuthorizedEntriesResponse{Entries: []*types.Entry{e, e}, EntryRevisions: []*entryv1.EntryRevision{{Id: "1"}}})
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var page entryv1.SyncAuthorizedEntriesResponse
		if proto.Unmarshal(data, &page) != nil {
			return
		}
		a := &Agent{td: td, log: slog.New(slog.DiscardHandler), cache: newCache(), jwt: newTokens()}
		entries := a.parseEntries(entriesOf([]*entryv1.SyncAuthorizedEntriesResponse{&page}))
		a.cache.apply(entries, nil)
		for _, e := range entries {
			if e.id == "" || e.served && (e.spiffeID.TrustDomain() != td || e.spiffeID.Path() == "" || len(e.selectors) == 0) {
				t.Errorf("taken: %+v", e)
			}
		}
		if got := a.cache.match(nil); len(got) > 0 {
			t.Errorf("a process without any property has %d names", len(got))
		}
		// The same reply once more changes nothing.
		if gone := a.cache.apply(entries, nil); len(gone) > 0 {
			t.Errorf("gone: %v", gone)
		}
	})
}

// FuzzTemplates: whatever an issuer sends, templates name workloads of our own trust
// domain only, and nobody without a property.
func FuzzTemplates(f *testing.F) {
	add := func(pages ...*templatev1.Template) {
		data, err := proto.Marshal(&templatev1.AuthorizedResponse{Templates: pages})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "unix:user:anna")
	}
	add(&templatev1.Template{Id: "a", SpiffeId: "spiffe://example.org/user/{unix:user}", FederatesWith: []string{"b.org"}, DnsNames: []string{"{unix:user}.x"}, CreatedAt: 3})
	add(&templatev1.Template{Id: "a", SpiffeId: "spiffe://example.org/x/y", Selectors: []string{"unix:user:anna"}}, &templatev1.Template{Id: "a", SpiffeId: "spiffe://example.org/x/{a:b}"})
	td := spiffeid.RequireTrustDomainFromString("example.org")
	f.Fuzz(func(t *testing.T, data []byte, selector string) {
		var page templatev1.AuthorizedResponse
		if proto.Unmarshal(data, &page) != nil {
			return
		}
		c := newCache()
		parse := func() (patterns []*pattern) {
			for _, sent := range page.Templates {
				if p, err := parsePattern(sent, td); err == nil {
					patterns = append(patterns, p)
				}
			}
			return patterns
		}
		c.apply(nil, parse())
		found, _ := c.resolve([]string{selector}, map[spiffeid.ID]bool{})
		for _, r := range found {
			if r.ID.TrustDomain() != td || strings.HasPrefix(r.ID.Path()+"/", "/spire/") || len(r.Selectors) == 0 {
				t.Errorf("%q gives %s of %v", selector, r.ID, r.Selectors)
			}
		}
		if got, _ := c.resolve(nil, map[spiffeid.ID]bool{}); len(got) > 0 {
			t.Errorf("a process without any property has %d names", len(got))
		}
		// The same reply once more changes nothing.
		if gone := c.apply(nil, parse()); len(gone) > 0 {
			t.Errorf("gone: %v", gone)
		}
	})
}

package issuer

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/watchv1"
)

// bundleTagSize is the size of a bundle's tag, in bytes.
const bundleTagSize = 16

// agentMask is what an agent needs of an entry.
var agentMask = &types.EntryMask{
	SpiffeId: true, Selectors: true, FederatesWith: true, RevisionNumber: true, StoreSvid: true, Hint: true, CreatedAt: true,
}

// taggedBundle is the trust bundle as agents get it.
type taggedBundle struct {
	of  *ca.Bundle
	pb  *types.Bundle
	tag []byte
}

// tagged is the trust bundle, put into its form once for each that there is.
func (i *Issuer) tagged() *taggedBundle {
	b, _ := i.ca.Bundle()
	if known := i.toldBundle.Load(); known != nil && known.of == b {
		return known
	}
	pb := bundleToProto(b, nil)
	fresh := &taggedBundle{of: b, pb: pb, tag: bundleTag(pb)}
	i.toldBundle.Store(fresh)
	return fresh
}

// bundleTag stands for a bundle with all that it says. Should another version of
// this program encode it in another way, agents get it once more.
func bundleTag(b *types.Bundle) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil { // a string that is not UTF-8
		return nil
	}
	sum := sha256.Sum256(data)
	return sum[:bundleTagSize]
}

// Sync implements watchv1.EntryWatchServer. Nothing is kept of an agent: what it
// says that it holds is compared with what it may have, so that it does not
// matter when, and of which replica, it asked before.
func (s *watchService) Sync(req *watchv1.SyncRequest, stream watchv1.EntryWatch_SyncServer) error {
	agent := callerOf(stream.Context()).id
	revision, _ := s.index.Revision()
	if revision < req.GetRevision() {
		// Another replica has told the agent what this one has not heard yet.
		if err := s.refresh(stream.Context()); err != nil {
			return err
		}
		revision, _ = s.index.Revision()
	}
	m := &missed{pages: []*watchv1.SyncReply{{Revision: revision}}}
	if b := s.tagged(); len(b.tag) == 0 || !bytes.Equal(req.GetBundle(), b.tag) {
		m.pages[0].Bundle = &watchv1.Bundle{TrustDomain: s.cfg.TrustDomain.Name(), Tag: b.tag, Bundle: b.pb}
		m.items, m.bytes = 1, proto.Size(b.pb)
	}
	holding := s.index.Holding(agent, s.now())
	if !bytes.Equal(req.GetDigest(), holding.Digest[:]) {
		if !req.GetListed() {
			m.pages[0].Digest, m.pages[0].Differs = holding.Digest[:], true
			return m.send(stream)
		}
		// The digest must be that of the very list that is sent.
		entries := s.index.Authorized(agent, s.now())
		leave, err := s.enterList(stream.Context(), len(entries))
		if err != nil {
			return err
		}
		holding = registry.HoldingOf(entries)
		m.entries(req.GetHeld(), entries)
		leave() // sending may take as long as the agent likes
	}
	m.pages[0].Digest = holding.Digest[:]
	s.missedBundles(m, req, s.federatesWith(agent, holding))
	return m.send(stream)
}

// federatesWith are the trust domains that the agent's entries and templates
// federate with, sorted.
func (i *Issuer) federatesWith(agent spiffeid.ID, holding *registry.Holding) []string {
	names := slices.Clone(holding.FederatesWith)
	for _, t := range i.index.AuthorizedTemplates(agent, i.now()) {
		names = append(names, t.FederatesWith...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// missedBundles adds the bundles of other trust domains that are not what the
// agent holds.
func (s *watchService) missedBundles(m *missed, req *watchv1.SyncRequest, names []string) {
	for _, name := range names {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			continue // it was checked when the entry was made
		}
		has, news := req.GetFederated()[name], &watchv1.Bundle{TrustDomain: name}
		if b := s.index.FederatedBundle(td); b != nil {
			news.Bundle = federatedToProto(b, nil)
			news.Tag = bundleTag(news.Bundle)
		}
		if bytes.Equal(has, news.Tag) && (len(has) > 0 || news.Bundle == nil) {
			continue
		}
		page := m.page(news)
		page.Federated = append(page.Federated, news)
	}
}

// missed is a reply to Sync, in as many messages as it takes.
type missed struct {
	pages []*watchv1.SyncReply
	// What is in the last of them.
	items, bytes int
}

// entries adds the difference between what the agent holds and what it may have.
func (m *missed) entries(held []*watchv1.Held, entries []*registry.Entry) {
	has := make(map[string][]byte, len(held))
	for _, h := range held {
		has[h.GetId()] = h.GetTag()
	}
	for _, e := range entries {
		tag := e.Tag()
		known, ok := has[e.ID]
		delete(has, e.ID)
		if ok && bytes.Equal(known, tag[:]) {
			continue
		}
		news := &watchv1.Changed{Entry: entryToProto(e, agentMask), Tag: tag[:]}
		page := m.page(news)
		page.Changed = append(page.Changed, news)
	}
	for _, id := range slices.Sorted(maps.Keys(has)) {
		page := m.page(&watchv1.Held{Id: id}) // as large as the ID is
		page.Gone = append(page.Gone, id)
	}
}

// page is the message that an item goes into.
func (m *missed) page(item proto.Message) *watchv1.SyncReply {
	size := proto.Size(item) + 8 // tag and length
	if m.items == syncPage || m.items > 0 && m.bytes+size > maxReply {
		m.pages = append(m.pages, &watchv1.SyncReply{Revision: m.pages[0].Revision})
		m.items, m.bytes = 0, 0
	}
	m.items++
	m.bytes += size
	return m.pages[len(m.pages)-1]
}

func (m *missed) send(stream watchv1.EntryWatch_SyncServer) error {
	for n, page := range m.pages {
		page.More, page.Digest = n < len(m.pages)-1, m.pages[0].Digest
		if err := stream.Send(page); err != nil {
			return err
		}
	}
	return nil
}

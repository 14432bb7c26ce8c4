package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/held"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/identity/workload"
)

// errContradicts is an issuer whose reply does not lead to the entries that it
// says there are.
var errContradicts = errors.New("the entries that the issuer sent do not have the digest that it named")

// told is what the issuer said last, in its own form: what it is asked by, and what
// is looked at again where it has nothing new, because keys in it expire.
type told struct {
	revision  uint64
	bundle    *watchv1.Bundle
	federated map[string]*watchv1.Bundle
	templates toldTemplates
	// wholeUntil is when to ask again an issuer that does not tell what was missed.
	wholeUntil time.Time
}

// holding is the entries that the agent holds, by ID.
type holding []*watchv1.Held

func (h holding) digest() []byte {
	sum := held.NewSum()
	for _, e := range h {
		sum.Add(e.Id, e.Tag)
	}
	digest := sum.Digest()
	return digest[:]
}

// held lists what the cache holds.
func (c *cache) held() holding {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make(holding, 0, len(c.records))
	for _, id := range slices.Sorted(maps.Keys(c.records)) {
		list = append(list, &watchv1.Held{Id: id, Tag: []byte(c.records[id].tag)})
	}
	return list
}

// all returns the entries that the cache holds.
func (c *cache) all() map[string]entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]entry, len(c.records))
	for id, r := range c.records {
		all[id] = r.entry
	}
	return all
}

// syncMissed asks for what this agent lacks, and is current when it returns nil:
// what it holds then has the digest that the issuer named.
func (a *Agent) syncMissed(ctx context.Context) (serial uint64, err error) {
	has := a.cache.held()
	replies, err := a.ask(ctx, has, len(has) == 0)
	if err == nil && replies[0].Differs {
		if err := a.takeTold(replies[0]); err != nil {
			return 0, err
		}
		replies, err = a.ask(ctx, has, true)
	}
	if err != nil {
		return 0, err
	}
	if err := a.takeTold(replies[0]); err != nil {
		return 0, err
	}
	entries, err := a.merge(has, replies)
	if err != nil && len(has) > 0 {
		a.log.Warn("getting the whole list of entries", "error", err)
		if replies, err = a.ask(ctx, nil, true); err == nil {
			entries, err = a.merge(nil, replies)
		}
	}
	if err != nil {
		return 0, err
	}
	patterns, err := a.fetchTemplates(ctx)
	if err != nil {
		return 0, err
	}
	a.takeEntries(entries, patterns)
	a.takeFederated(replies)
	a.told.revision = replies[0].Revision
	return a.told.bundle.GetBundle().GetSequenceNumber(), nil
}

// ask is Sync. listed has it answered by the difference to what the agent holds.
func (a *Agent) ask(ctx context.Context, has holding, listed bool) (replies []*watchv1.SyncReply, err error) {
	req := &watchv1.SyncRequest{
		Revision: a.told.revision, Digest: has.digest(), Bundle: a.told.bundle.GetTag(), Federated: map[string][]byte{}, Listed: listed,
	}
	for name, b := range a.told.federated {
		req.Federated[name] = b.Tag
	}
	if listed {
		req.Held = has
		if soonest := a.cache.soonest(); soonest.IsZero() {
			ctx = admit.ForTheFirstTime(ctx)
		} else {
			ctx = admit.WithLife(ctx, time.Until(soonest))
		}
	}
	err = a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) error {
		replies = nil
		size := 0
		stream, err := watchv1.NewEntryWatchClient(cc).Sync(ctx, req)
		if err != nil {
			return err
		}
		for {
			reply, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return errors.New("the issuer ended the sync early")
			}
			if err != nil {
				return err
			}
			if replies, size = append(replies, reply), size+proto.Size(reply); size > maxAnswer {
				return errEndless
			}
			if !reply.More {
				return nil
			}
		}
	})
	return replies, err
}

// takeTold puts the bundle of a reply into force, or the one from before again.
func (a *Agent) takeTold(reply *watchv1.SyncReply) error {
	latest := a.told.bundle
	if reply.Bundle != nil {
		latest = reply.Bundle
	}
	if latest == nil {
		return fmt.Errorf("get trust bundle: %w", errors.New("the issuer sent none"))
	}
	if _, err := a.takeBundle(latest.Bundle); err != nil {
		return err
	}
	a.told.bundle = latest
	return nil
}

// merge is what the agent holds after replies to has. It is an error if the result
// does not have the digest that the replies name.
func (a *Agent) merge(has holding, replies []*watchv1.SyncReply) ([]entry, error) {
	all := a.cache.all()
	if len(has) == 0 {
		clear(all)
	}
	for _, reply := range replies {
		for _, changed := range reply.Changed {
			e, err := parseEntry(changed.GetEntry(), a.td)
			if err != nil {
				a.log.Warn("entry ignored", "entry_id", changed.GetEntry().GetId(), "error", err)
			}
			a.stats.received.Add(1)
			if e.id == "" {
				continue
			}
			e.tag = string(changed.Tag)
			all[e.id] = e
		}
		for _, id := range reply.Gone {
			delete(all, id)
		}
	}
	entries := make([]entry, 0, len(all))
	result := make(holding, 0, len(all))
	for _, id := range slices.Sorted(maps.Keys(all)) {
		entries = append(entries, all[id])
		result = append(result, &watchv1.Held{Id: id, Tag: []byte(all[id].tag)})
	}
	if !bytes.Equal(result.digest(), replies[0].Digest) {
		return nil, errContradicts
	}
	return entries, nil
}

// takeFederated takes over the bundles of other trust domains. What the issuer did
// not send again is as it was.
func (a *Agent) takeFederated(replies []*watchv1.SyncReply) {
	wanted := a.cache.federatesWith()
	next := map[string]*watchv1.Bundle{}
	got := map[spiffeid.TrustDomain]*workload.Bundle{}
	sent := map[string]*watchv1.Bundle{}
	for _, reply := range replies {
		for _, b := range reply.Federated {
			sent[b.TrustDomain] = b
		}
	}
	for _, td := range wanted {
		b := sent[td.Name()]
		if b == nil {
			b = a.told.federated[td.Name()]
		}
		if b.GetBundle() == nil {
			got[td] = nil
			continue
		}
		next[td.Name()] = b
		if parsed, err := parseFederated(b.Bundle, td); err != nil {
			a.log.Error("federated bundle refused", "error", err)
		} else {
			got[td] = parsed.served
		}
	}
	a.told.federated = next
	a.cache.setFederated(wanted, got)
}

// syncWay syncs by what was missed where the issuer has that, and otherwise in
// SPIRE's way.
func (a *Agent) syncWay(ctx context.Context) (serial uint64, err error) {
	if time.Now().Before(a.told.wholeUntil) {
		return a.syncWhole(ctx)
	}
	serial, err = a.syncMissed(ctx)
	switch {
	case status.Code(err) == codes.Unimplemented:
		a.told.wholeUntil = time.Now().Add(unwatchedRetry)
		return a.syncWhole(ctx)
	case errors.Is(err, errContradicts):
		a.log.Error("syncing in SPIRE's way", "error", err)
		return a.syncWhole(ctx)
	case err != nil:
		return 0, fmt.Errorf("sync: %w", err)
	}
	return serial, nil
}

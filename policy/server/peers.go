package server

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
)

const (
	// Peers that are remembered after they left; the longest gone is forgotten.
	maxGone = 4096
	// Of one SPIFFE ID. Replicas share one, and what a peer calls its service
	// is its own choice: one workload must not fill the memory.
	maxConnectedPerID = 64
	maxGonePerID      = 8
	// Bounds of what a peer may say of itself.
	maxReportText  = 512
	maxReportItems = 32
)

// PeerReport is what is known of an enforcement point.
type PeerReport struct {
	SPIFFEID spiffeid.ID
	// Report is the peer's own word.
	Report    *policyv1.Report
	Connected bool
	// LastSeen is when its last message came, or when it left.
	LastSeen time.Time
}

// Reports are the peers that are connected, and the last word of those that
// left, in the order of their SPIFFE IDs.
func (s *Server) Reports() []PeerReport { return s.peers.list() }

type peer struct {
	id       spiffeid.ID
	hash     uint64 // see followerHash
	report   *policyv1.Report
	lastSeen time.Time

	// offered was sent last. What was said before that is not about it:
	// refusedBefore, and the decisions made under what ran then.
	offered       policy.Revision
	refusedBefore string
	before        *policyv1.Report
}

// peers follows streams. Replicas share a SPIFFE ID, so that each stream is a
// peer; of those that left, the last per ID and service is kept until one of
// the same comes back.
type peers struct {
	mu        sync.Mutex
	connected map[*peer]bool
	gone      map[goneKey]*peer
}

type goneKey struct {
	id      spiffeid.ID
	service string
}

// connect is nil when the SPIFFE ID has too many streams already.
func (p *peers) connect(id spiffeid.ID, hash uint64, report *policyv1.Report, now time.Time) *peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	replicas := 0
	for other := range p.connected {
		if other.id == id {
			replicas++
		}
	}
	if replicas >= maxConnectedPerID {
		return nil
	}
	if p.connected == nil {
		p.connected, p.gone = map[*peer]bool{}, map[goneKey]*peer{}
	}
	c := &peer{id: id, hash: hash, report: bounded(report), lastSeen: now}
	p.connected[c] = true
	delete(p.gone, goneKey{id, c.report.Service})
	return c
}

// report keeps the word of a peer; refused is set when it says anew that it
// refused a slice.
func (p *peers) report(c *peer, report *policyv1.Report, now time.Time) (refused string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := c.report.Refused
	c.report, c.lastSeen = bounded(report), now
	if c.report.Refused != before {
		return c.report.Refused
	}
	return ""
}

func (p *peers) disconnect(c *peer, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.connected, c)
	for other := range p.connected {
		if other.id == c.id && other.report.Service == c.report.Service {
			return // A replica is still here.
		}
	}
	c.lastSeen = now
	p.gone[goneKey{c.id, c.report.Service}] = c
	ofSame := 0
	for key := range p.gone {
		if key.id == c.id {
			ofSame++
		}
	}
	if ofSame > maxGonePerID {
		p.forget(func(key goneKey) bool { return key.id == c.id })
	}
	if len(p.gone) > maxGone {
		p.forget(func(goneKey) bool { return true })
	}
}

// forget drops the longest gone of these.
func (p *peers) forget(of func(goneKey) bool) {
	var oldest goneKey
	for key, g := range p.gone {
		if o := p.gone[oldest]; of(key) && (o == nil || g.lastSeen.Before(o.lastSeen)) {
			oldest = key
		}
	}
	delete(p.gone, oldest)
}

// offer notes what is sent to a peer.
func (p *peers) offer(c *peer, revision policy.Revision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.offered, c.refusedBefore, c.before = revision, c.report.Refused, c.report
}

// refusedOffer is why a peer refused the revision, empty when it was not offered
// to it, or not refused.
func (p *peers) refusedOffer(c *peer, revision policy.Revision) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.offered != revision || c.report.Refused == c.refusedBefore {
		return ""
	}
	return c.report.Refused
}

// runs reports whether a peer says to run the revision of that number.
func (p *peers) runs(c *peer, number uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.report.GetRevision().GetNumber() == number
}

// hashes are those of the peers that are connected, ascending.
func (p *peers) hashes() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]uint64, 0, len(p.connected))
	for c := range p.connected {
		list = append(list, c.hash)
	}
	slices.Sort(list)
	return list
}

// shares adds up what peers said of the revision here and of the one there.
// Where the others have made fewer decisions than enough, there counts also what
// those who are here now said before they changed.
func (p *peers) shares(here, there policy.Revision, enough uint64) (h, t Share) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var earlier Share
	add := func(c *peer) {
		under(here, c.report, &h)
		under(there, c.report, &t)
		if c.offered == here && c.before != c.report {
			under(there, c.before, &earlier)
		}
	}
	for c := range p.connected {
		add(c)
	}
	for _, c := range p.gone {
		add(c)
	}
	if t.Decisions < enough {
		t.Decisions += earlier.Decisions
		t.Denied += earlier.Denied
	}
	return h, t
}

func under(revision policy.Revision, report *policyv1.Report, into *Share) {
	if r := report.GetRevision(); r.GetNumber() == revision.Number && r.GetEpoch() == revision.Epoch {
		into.Decisions += report.GetDecisions()
		into.Denied += report.GetDenied()
	}
}

func (p *peers) list() []PeerReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	reports := make([]PeerReport, 0, len(p.connected)+len(p.gone))
	add := func(c *peer, connected bool) {
		reports = append(reports, PeerReport{SPIFFEID: c.id, Report: proto.CloneOf(c.report), Connected: connected, LastSeen: c.lastSeen})
	}
	for c := range p.connected {
		add(c, true)
	}
	for _, c := range p.gone {
		add(c, false)
	}
	slices.SortFunc(reports, func(a, b PeerReport) int {
		return cmp.Or(strings.Compare(a.SPIFFEID.String(), b.SPIFFEID.String()), strings.Compare(a.Report.Service, b.Report.Service),
			a.LastSeen.Compare(b.LastSeen))
	})
	return reports
}

// bounded is the report without what is too long or would not print: it ends
// up on somebody's terminal.
func bounded(r *policyv1.Report) *policyv1.Report {
	out := &policyv1.Report{
		Service: clean(r.Service), Version: clean(r.Version), Refused: clean(r.Refused), SvidExpires: r.SvidExpires,
		Decisions: r.Decisions, Denied: min(r.Denied, r.Decisions), Engine: clean(r.Engine),
	}
	if rev := r.Revision; rev != nil && len(rev.Digest) == 32 {
		out.Revision = &policyv1.Revision{Epoch: rev.Epoch, Number: rev.Number, Digest: slices.Clone(rev.Digest)}
	}
	for _, text := range r.NotEnforced[:min(len(r.NotEnforced), maxReportItems)] {
		out.NotEnforced = append(out.NotEnforced, clean(text))
	}
	for _, text := range r.Problems[:min(len(r.Problems), maxReportItems)] {
		out.Problems = append(out.Problems, clean(text))
	}
	return out
}

// clean does not hold on to s, which may be much longer than what is kept.
func clean(s string) string {
	s = strings.ToValidUTF8(strings.Clone(s[:min(len(s), maxReportText)]), "")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

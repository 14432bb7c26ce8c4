package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/templatev1"
)

// entryInfo is the JSON form of an entry, and of a template, which has fewer fields.
type entryInfo struct {
	ID            string     `json:"id"`
	SPIFFEID      string     `json:"spiffe_id"`
	ParentID      string     `json:"parent_id"`
	Selectors     []string   `json:"selectors"`
	X509SVIDTTL   int32      `json:"x509_svid_ttl,omitempty"` // seconds
	JWTSVIDTTL    int32      `json:"jwt_svid_ttl,omitempty"`  // seconds
	DNSNames      []string   `json:"dns_names,omitempty"`
	FederatesWith []string   `json:"federates_with,omitempty"`
	Hint          string     `json:"hint,omitempty"`
	Admin         bool       `json:"admin,omitempty"`
	Downstream    bool       `json:"downstream,omitempty"`
	StoreSVID     bool       `json:"store_svid,omitempty"`
	ExpiresAt     *time.Time `json:"expires_at,omitempty"`
	CreatedAt     *time.Time `json:"created_at,omitempty"`
	Revision      int64      `json:"revision"`
	// Digest is what acts on record name the entry by.
	Digest string `json:"digest,omitempty"`
}

func entryInfoFrom(e *types.Entry) entryInfo {
	return entryInfo{
		ID: e.GetId(), SPIFFEID: idText(e.GetSpiffeId()), ParentID: idText(e.GetParentId()), Selectors: notNil(selectors(e)),
		X509SVIDTTL: e.GetX509SvidTtl(), JWTSVIDTTL: e.GetJwtSvidTtl(), DNSNames: e.GetDnsNames(), FederatesWith: e.GetFederatesWith(),
		Hint: e.GetHint(), Admin: e.GetAdmin(), Downstream: e.GetDownstream(), StoreSVID: e.GetStoreSvid(),
		ExpiresAt: secondsTime(e.GetExpiresAt()), CreatedAt: secondsTime(e.GetCreatedAt()), Revision: e.GetRevisionNumber(), Digest: entryDigest(e),
	}
}

func templateInfoFrom(t *templatev1.Template) entryInfo {
	return entryInfo{
		ID: t.GetId(), SPIFFEID: t.GetSpiffeId(), ParentID: t.GetParentId(), Selectors: notNil(t.GetSelectors()),
		X509SVIDTTL: t.GetX509SvidTtl(), JWTSVIDTTL: t.GetJwtSvidTtl(), DNSNames: t.GetDnsNames(), FederatesWith: t.GetFederatesWith(),
		Hint: t.GetHint(), CreatedAt: secondsTime(t.GetCreatedAt()), Revision: t.GetRevision(),
	}
}

// writeInfos lists entries, or templates: what kind says.
func writeInfos(w io.Writer, kind string, list []entryInfo) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\tSPIFFE ID\tPARENT\tSELECTORS\n", strings.ToUpper(kind))
	for _, e := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", e.ID, e.SPIFFEID, e.ParentID, terminalSafe(strings.Join(e.Selectors, " ")))
	}
	return tw.Flush()
}

// emit shows one: kind is what it is.
func (e entryInfo) emit(a *app, kind string) error {
	return a.emit(e, func(w io.Writer) error {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "%s\t%s\n", kind, e.ID)
		for _, line := range e.lines() {
			fmt.Fprintf(tw, "%s\t%s\n", line[0], terminalSafe(line[1]))
		}
		return tw.Flush()
	})
}

// lines are what there is to say about it but for its ID: name and value.
func (e entryInfo) lines() (lines [][2]string) {
	row := func(name, value string) {
		if value != "" {
			lines = append(lines, [2]string{name, value})
		}
	}
	yes := func(name string, set bool) {
		if set {
			row(name, "yes")
		}
	}
	at := func(name string, t *time.Time) {
		if t != nil {
			row(name, t.Format(time.RFC3339))
		}
	}
	row("spiffe id", e.SPIFFEID)
	row("parent", e.ParentID)
	for _, s := range e.Selectors {
		row("selector", s)
	}
	row("x509-svid ttl", ttlText(e.X509SVIDTTL))
	row("jwt-svid ttl", ttlText(e.JWTSVIDTTL))
	row("dns names", strings.Join(e.DNSNames, " "))
	row("federates with", strings.Join(e.FederatesWith, " "))
	row("hint", e.Hint)
	yes("admin", e.Admin)
	yes("downstream", e.Downstream)
	yes("store svid", e.StoreSVID)
	at("expires", e.ExpiresAt)
	at("created", e.CreatedAt)
	row("revision", fmt.Sprint(e.Revision))
	row("digest", e.Digest)
	return lines
}

// entryDigest is the digest of an entry, by which acts on record name it; empty
// for what is none of ours.
func entryDigest(pb *types.Entry) string {
	var ids [2]spiffeid.ID
	for n, id := range []*types.SPIFFEID{pb.GetSpiffeId(), pb.GetParentId()} {
		var err error
		if ids[n], err = spiffeid.FromString(idText(id)); err != nil {
			return ""
		}
	}
	e := registry.Entry{
		ID: pb.GetId(), SPIFFEID: ids[0], ParentID: ids[1],
		X509SVIDTTL: time.Duration(pb.GetX509SvidTtl()) * time.Second, JWTSVIDTTL: time.Duration(pb.GetJwtSvidTtl()) * time.Second,
		FederatesWith: pb.GetFederatesWith(), DNSNames: pb.GetDnsNames(), Admin: pb.GetAdmin(), Downstream: pb.GetDownstream(), StoreSVID: pb.GetStoreSvid(),
		Hint: pb.GetHint(), RevisionNumber: pb.GetRevisionNumber(),
	}
	for _, s := range pb.GetSelectors() {
		e.Selectors = append(e.Selectors, registry.Selector{Type: s.GetType(), Value: s.GetValue()})
	}
	e.Normalize()
	if at := secondsTime(pb.GetExpiresAt()); at != nil {
		e.ExpiresAt = *at
	}
	if at := secondsTime(pb.GetCreatedAt()); at != nil {
		e.CreatedAt = *at
	}
	digest := e.Digest()
	return hex.EncodeToString(digest[:])
}

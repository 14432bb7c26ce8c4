// Package identity names workloads and says where an SVID comes from.
//
// Names follow the SPIFFE ID specification. A Source is the only way in which
// the rest of Writ sees identity: go-spiffe's *workloadapi.X509Source is one,
// so every program works with any SPIFFE Workload API, ours or another's.
package identity

import (
	"context"
	"fmt"
	"io"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Source gives the current X509-SVID and trust bundles of one workload.
type Source interface {
	x509svid.Source
	x509bundle.Source

	// Updated delivers after each change of SVID or bundle. Deliveries
	// coalesce; there is one reader.
	Updated() <-chan struct{}

	io.Closer
}

// WorkloadID is the ID a service has unless it is given another:
// spiffe://TD/svc/<name>.
func WorkloadID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	return named(td, "svc", name)
}

// NodeAlias is the name of a node that outlives its agents and their join
// tokens: spiffe://TD/node/<name>. Entries hang on it.
func NodeAlias(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	return named(td, "node", name)
}

// ServerID is the ID of the control plane: spiffe://TD/writ/server.
func ServerID(td spiffeid.TrustDomain) spiffeid.ID {
	return must(spiffeid.FromSegments(td, "writ", "server"))
}

// IssuerID is the ID under which an issuer serves SPIRE's server API:
// spiffe://TD/spire/server, as stock agents demand.
func IssuerID(td spiffeid.TrustDomain) spiffeid.ID {
	return must(spiffeid.FromSegments(td, "spire", "server"))
}

func named(td spiffeid.TrustDomain, kind, name string) (spiffeid.ID, error) {
	id, err := spiffeid.FromSegments(td, kind, name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("name %q cannot be a SPIFFE ID segment (letters, digits, '.', '_', '-'): %w", name, err)
	}
	return id, nil
}

// must unwraps an ID made of constant, valid segments.
func must(id spiffeid.ID, err error) spiffeid.ID {
	if err != nil {
		panic(err)
	}
	return id
}

// Act is something done to names, credentials, policy or the record by way of
// a control plane. It becomes an audit event; rooms below audit emit it
// without knowing what an audit event is.
type Act struct {
	// Kind is one of the Act constants.
	Kind string
	// Verb in the past tense: issued, renewed, created, deleted, activated…
	Verb string
	// Actor is a SPIFFE ID, unix:uid:<n>, or ip:<address> before attestation.
	Actor string
	// Object is the kind of thing: agent, entry, token, x509-svid, policy…
	Object   string
	ObjectID string
	// Details are name and value; never a secret.
	Details [][2]string
	// Failed, with Reason, is an attempt that was refused.
	Failed bool
	Reason string
}

// Kinds of Act.
const (
	ActCredential = "credential"
	ActAdmin      = "admin"
	ActPolicy     = "policy"
	ActAlarm      = "alarm"
)

// Emit makes an Act durable. After an error it is not on record, and what it
// speaks of must not happen.
type Emit func(ctx context.Context, act Act) error

// EmitAll makes many Acts durable together, each an event of its own, for the
// price of one wait. After an error nothing that they speak of must happen; some
// of them may be on record all the same.
type EmitAll func(ctx context.Context, acts []Act) error

package policy

import (
	"maps"
	"slices"
	"time"
)

// InputVersion is the version of Input that this package describes. Its JSON
// form is specified by rego/schemas/input.json.
const InputVersion = 1

// Directions and layers of an Input.
const (
	Inbound         = "inbound"
	Outbound        = "outbound"
	LayerConnection = "connection"
	LayerRequest    = "request"
)

// How a source proved its identity.
const (
	AuthnMTLS  = "mtls"
	AuthnToken = "token"
	AuthnNone  = "none"
)

// States of the tokens that came with a request.
const (
	TokenAbsent  = "absent"
	TokenValid   = "valid"
	TokenInvalid = "invalid"
)

// Protocols of a request.
const (
	HTTP = "http"
	GRPC = "grpc"
)

// Input is what is known of a request or connection when it is decided.
// Strings are as received unless a field says otherwise.
type Input struct {
	Direction   string
	Layer       string
	Source      Source
	Destination Destination
	// Request is meaningless at LayerConnection.
	Request     Request
	Tokens      []Token
	TokenStatus string
	Connection  Connection
	// Time is also the evaluation's clock, so that a replay is exact.
	Time time.Time
}

// Source is who asks.
type Source struct {
	// ID is a verified SPIFFE ID, empty when there is none.
	ID          string
	TrustDomain string
	Path        string
	Authn       string
	// Serial of the X509-SVID, big endian. For the record; policy does not
	// see it.
	Serial []byte
}

// Destination is who is asked. Service comes from the signed catalogue, never
// from the request.
type Destination struct {
	Service string
	ID      string
	Port    int
}

// Request is the head of an HTTP or gRPC request.
type Request struct {
	Protocol string
	Method   string
	Host     string
	// Path as received, without the query.
	Path string
	// Segments of Path, percent-decoded after the split; %2F stays inside its
	// segment.
	Segments []string
	Query    Values
	// Headers by lower-case name.
	Headers Values
	// GRPCService and GRPCMethod are set when Protocol is GRPC.
	GRPCService string
	GRPCMethod  string
	// ContentLength is -1 when unknown.
	ContentLength int64
}

// Token is a verified token's content.
type Token struct {
	Issuer   string
	Subject  string
	Audience []string
	Claims   map[string]any
	Actor    string
}

// Connection is how the request arrived.
type Connection struct {
	PeerIP string
	// PeerPort and KeyExchange are for the record; policy does not see them.
	PeerPort    int
	KeyExchange string
	ClientIP    string
	TLSVersion  string
	SNI         string
	ALPN        string
}

// Values is a lazy multi-map of headers or query parameters, so that an
// engine that reads two headers does not pay for twenty.
type Values interface {
	// Get returns the values of name, nil when absent. Header names are lower
	// case. The caller must not change the slice.
	Get(name string) []string
	// Each calls f for every name until f returns false, in no stated order.
	Each(f func(name string, values []string) bool)
}

// MapValues is a Values over a map.
type MapValues map[string][]string

// Get implements Values.
func (m MapValues) Get(name string) []string { return m[name] }

// Each implements Values, in the order of the names.
func (m MapValues) Each(f func(string, []string) bool) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if !f(name, m[name]) {
			return
		}
	}
}

package program

import (
	"fmt"
	"unsafe"

	"github.com/writ-dev/writ/policy"
)

// layout is the input that the places of plain texts are taken of.
var layout policy.Input

// plainAt is how far into an Input a plain text stands.
func plainAt(text *string) uintptr {
	return uintptr(unsafe.Pointer(text)) - uintptr(unsafe.Pointer(&layout))
}

// shape is what a Base holds.
type shape uint8

const (
	shapeNone shape = iota
	shapeText
	shapeNumber
	shapeList // the segments as a whole
)

// bases says of each Base its name in errors, what it holds, whether it has a
// Name and an Index, and whether it is of a token; of one that is simply a text
// of the input, where in layout it stands and whether it is of a request.
var bases = [endBase]struct {
	name                  string
	shape                 shape
	named, indexed, token bool
	plain                 *string
	ofRequest             bool
}{
	Direction:          {name: "direction", shape: shapeText, plain: &layout.Direction},
	Layer:              {name: "layer", shape: shapeText, plain: &layout.Layer},
	SourceID:           {name: "source.id", shape: shapeText, plain: &layout.Source.ID},
	SourceTrustDomain:  {name: "source.trust_domain", shape: shapeText, plain: &layout.Source.TrustDomain},
	SourcePath:         {name: "source.path", shape: shapeText, plain: &layout.Source.Path},
	SourceAuthn:        {name: "source.authn", shape: shapeText, plain: &layout.Source.Authn},
	DestinationService: {name: "destination.service", shape: shapeText, plain: &layout.Destination.Service},
	DestinationID:      {name: "destination.id", shape: shapeText, plain: &layout.Destination.ID},
	DestinationPort:    {name: "destination.port", shape: shapeNumber},
	Protocol:           {name: "request.protocol", shape: shapeText, plain: &layout.Request.Protocol, ofRequest: true},
	Method:             {name: "request.method", shape: shapeText, plain: &layout.Request.Method, ofRequest: true},
	Host:               {name: "request.host", shape: shapeText, plain: &layout.Request.Host, ofRequest: true},
	Path:               {name: "request.path", shape: shapeText, plain: &layout.Request.Path, ofRequest: true},
	Segment:            {name: "request.segments[]", shape: shapeText, indexed: true},
	SegmentCount:       {name: "count(request.segments)", shape: shapeNumber},
	Segments:           {name: "request.segments", shape: shapeList},
	Header:             {name: "request.headers", shape: shapeText, named: true, indexed: true},
	HeaderCount:        {name: "count(request.headers)", shape: shapeNumber, named: true},
	Query:              {name: "request.query", shape: shapeText, named: true, indexed: true},
	QueryCount:         {name: "count(request.query)", shape: shapeNumber, named: true},
	GRPCService:        {name: "request.grpc.service", shape: shapeText},
	GRPCMethod:         {name: "request.grpc.method", shape: shapeText},
	ContentLength:      {name: "request.content_length", shape: shapeNumber},
	PeerIP:             {name: "connection.peer_ip", shape: shapeText, plain: &layout.Connection.PeerIP},
	ClientIP:           {name: "connection.client_ip", shape: shapeText, plain: &layout.Connection.ClientIP},
	TLSVersion:         {name: "connection.tls_version", shape: shapeText, plain: &layout.Connection.TLSVersion},
	SNI:                {name: "connection.sni", shape: shapeText, plain: &layout.Connection.SNI},
	ALPN:               {name: "connection.alpn", shape: shapeText, plain: &layout.Connection.ALPN},
	TokenStatus:        {name: "token_status", shape: shapeText},
	Time:               {name: "time", shape: shapeNumber},
	TokenIssuer:        {name: "token issuer", shape: shapeText, token: true},
	TokenSubject:       {name: "token subject", shape: shapeText, token: true},
	TokenActor:         {name: "token actor", shape: shapeText, token: true},
	TokenAudience:      {name: "token audience", shape: shapeText, indexed: true, token: true},
	TokenClaim:         {name: "token claim", shape: shapeText, named: true, token: true},
	TokenClaimItem:     {name: "token claim item", shape: shapeText, named: true, indexed: true, token: true},
	TokenClaimKind:     {name: "token claim kind", shape: shapeText, named: true, token: true},
	Weekday:            {name: "weekday", shape: shapeText, indexed: true},
	SecondOfDay:        {name: "second of the day", shape: shapeNumber, indexed: true},
}

func shapeOf(b Base) shape {
	if b >= endBase {
		return shapeNone
	}
	return bases[b].shape
}

func named(b Base) bool    { return b < endBase && bases[b].named }
func indexed(b Base) bool  { return b < endBase && bases[b].indexed }
func atOffset(b Base) bool { return b == Weekday || b == SecondOfDay }
func ofToken(b Base) bool  { return b < endBase && bases[b].token }

// String is the field's place in the input.
func (b Base) String() string {
	if shapeOf(b) == shapeNone {
		return fmt.Sprintf("field %d", uint8(b))
	}
	return bases[b].name
}

func (k StepKind) hasText() bool {
	switch k {
	case TrimPrefix, TrimSuffix, Trim, TrimLeft, TrimRight, SplitElement:
		return true
	}
	return false
}

var opNames = [endOp]string{
	Equal: "equal", Prefix: "prefix", Suffix: "suffix", Contains: "contains", Glob: "glob", Regex: "regex",
	CIDR: "cidr", Address: "address", PathMatch: "path match", Range: "range", EqualField: "equal field",
}

func (o Op) String() string {
	if o == 0 || o >= endOp {
		return fmt.Sprintf("operator %d", uint8(o))
	}
	return opNames[o]
}

// operand is the shape of what the operator works on.
func (o Op) operand() shape {
	switch {
	case o == 0 || o >= endOp:
		return shapeNone
	case o == Range:
		return shapeNumber
	case o == PathMatch:
		return shapeList
	}
	return shapeText
}

func (o Op) hasTexts() bool {
	return o != Range && o != EqualField && o != Address
}

// Package program is the compiled form of a policy and its evaluation: typed
// conditions on the fields of a policy.Input, found by hash, trie and interval
// and read straight from the request, without OPA and without allocating.
//
// A Program says of each rule under which conditions it speaks, and where it
// cannot say so exactly it says when to ask: Decide then answers nothing, and
// the caller asks OPA. So a Program never guesses, and what it answers is what
// data.writ.decision would have answered. Package policy/compile makes it.
package program

import "github.com/writ-dev/writ/policy"

// Version of the encoded form. A reader refuses any other.
const Version = 1

// Program decides for the services of one slice, or of a whole policy. It is
// not changed once made.
type Program struct {
	// Compiler is the version of what made it; Digest the source content's.
	Compiler string
	Digest   [32]byte
	Reads    policy.Reads
	// Rules are what clauses name by index.
	Rules []policy.Rule
	// Units by service name, ascending, each once. An input for any other
	// service is asked about.
	Units []Unit
}

// Unit decides the requests to one service of the catalogue.
type Unit struct {
	Service string
	// HasPolicy is whether anything is written for the service; it words the
	// reason of a default deny.
	HasPolicy bool
	// Clauses of each tier, indexed by policy.Tier from Guardrail to
	// ServiceAllow; index 0 is unused.
	//
	// The tiers are tried in this order. A tier speaks when at least one of its
	// clauses holds, with the rules of all that hold; a clause that holds and
	// says Ask ends it: the unit answers nothing.
	Clauses [policy.ServiceAllow + 1][]Clause
	// Ask holds conditions under which the unit answers nothing, whatever the
	// clauses say: values for which an evaluation could end in an error, such as
	// an address that does not parse where a rule tests a CIDR.
	Ask []Clause
}

// Clause is a conjunction: the rule speaks when all atoms hold. A rule with
// alternatives has several clauses.
type Clause struct {
	// Rule is an index into Program.Rules; 0 and unused in Unit.Ask. The ids of
	// the rules of one tier are texts, and each belongs to one rule.
	Rule uint32
	// Ask says that the atoms are necessary but not sufficient: when they hold,
	// OPA is asked.
	Ask   bool
	Atoms []Atom
	// Expires is when an answer by this clause ends, nanoseconds since the Unix
	// epoch, 0 for no end: a break-glass has one, a rule that allows may have.
	Expires int64
}

// Atom is one condition: some value of Field meets all Preds. A field that is
// absent has no value, so that an atom without Not fails on it; Not turns the
// outcome around and therefore holds on an absent field, as `not` does in Rego.
// Without Preds it asks whether the field has a value.
type Atom struct {
	Field Field
	Not   bool
	Preds []Pred
	// Token, when not empty, stands in the place of Field and Preds: one token
	// of input.tokens meets all of these, which read the Token bases. They are
	// tested in this order. The Other of an EqualField may read any.
	Token []Atom
}

// Field names what is read of an Input. Base says where, Name and Index which
// of several; Via is applied to each value in turn.
type Field struct {
	Base Base
	// Name of a header (lower case) or query parameter; path of a claim.
	Name string
	// Index of a segment, or of one of the values of a header, a query
	// parameter, an audience or a claim's list. Any is an existential over them.
	Index int32
	Via   []Step
}

// Any is the Index of any element: one is enough.
const Any = -1

// Base is where a Field is read. Text fields hold strings, number fields
// int64.
type Base uint8

// Fields of an Input. Those of Request have no value at layer connection;
// GRPC fields have none unless the protocol is grpc.
const (
	_ Base = iota
	Direction
	Layer
	SourceID
	SourceTrustDomain
	SourcePath
	SourceAuthn
	DestinationService
	DestinationID
	DestinationPort // number
	Protocol
	Method
	Host
	Path
	// Segment is one segment by Index, or any; SegmentCount is a number and
	// Segments the list as a whole, for PathMatch only.
	Segment
	SegmentCount
	Segments
	// Header and Query are one value by Index, or any, of the values of Name.
	// HeaderCount and QueryCount are the number of values, absent when the name
	// is: `input.request.headers.x` itself is there even if its list is empty.
	Header
	HeaderCount
	Query
	QueryCount
	GRPCService
	GRPCMethod
	ContentLength // number
	PeerIP
	ClientIP
	TLSVersion
	SNI
	ALPN
	TokenStatus
	// Time is input.time in nanoseconds since the Unix epoch, a number.
	Time
	// Of one token, inside Atom.Token. TokenAudience is one by Index, or any.
	// The Name of a claim is its path, names joined by "\x00".
	TokenIssuer
	TokenSubject
	TokenActor
	TokenAudience
	// TokenClaim is a claim that is a text and TokenClaimItem, by Index, or any,
	// an element of a claim that is a list, which is a text. Where one is read
	// and the claim is there but is something else, the unit answers nothing.
	TokenClaim
	TokenClaimItem
	// TokenClaimKind is what a claim is, as a text: string, number, true, false,
	// null, object, strings (a list of texts only, or empty) or array. So that
	// Unit.Ask can name what would be an error, also where a clause would fail
	// before it read the claim.
	TokenClaimKind
	// Weekday (a text such as Monday) and SecondOfDay (a number) are those of
	// input.time at a fixed offset from UTC: Index is OffsetUTC plus the minutes
	// east.
	Weekday
	SecondOfDay
	endBase
)

// OffsetUTC is the Index of a Weekday and SecondOfDay in UTC.
const OffsetUTC = 24 * 60

// Step derives a text from a text. It allocates nothing for ASCII.
type Step struct {
	Kind StepKind
	// Text is the prefix, suffix, cutset or separator; a separator is not empty.
	Text string
	// Index of the element that a split keeps, or Any; out of range is no value.
	Index int32
}

// StepKind is what a Step does, named after the Rego builtin it equals.
type StepKind uint8

// Kinds of a Step.
const (
	_ StepKind = iota
	Lower
	Upper
	TrimPrefix
	TrimSuffix
	TrimSpace
	Trim
	TrimLeft
	TrimRight
	SplitElement
	endStep
)

// Pred is a condition on one value.
type Pred struct {
	Op Op
	// Texts are the operands of a text operator: one is enough.
	Texts []string
	// Low and High bound a number, both included.
	Low, High int64
	// Not turns the outcome around, on a value that is there.
	Not bool
	// Other is the second field of EqualField.
	Other *Field
}

// Op is the operator of a Pred.
type Op uint8

// Operators. On an operand of the wrong kind (text, number) a Program is
// invalid.
const (
	_          Op = iota
	Equal         // text: is one of Texts
	Prefix        // text: begins with one of Texts
	Suffix        // text: ends with one of Texts
	Contains      // text: contains one of Texts
	Glob          // text: matches one of Texts, each "delimiters\x00pattern" as in OPA's glob.match
	Regex         // text: matches one of Texts, RE2
	CIDR          // text: an address in one of Texts, as net.cidr_contains; a text that is no address fails
	Address       // text: parses as an IP address, as net.ParseIP
	PathMatch     // Segments: matches one of Texts, see MatchPath
	Range         // number: Low <= value <= High
	EqualField    // text: equals the value of Other, one value (no Any), present
	endOp
)

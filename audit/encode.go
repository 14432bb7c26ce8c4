package audit

import (
	"encoding/binary"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// Bounds of an event on the wire, in bytes unless stated otherwise. A header
// or query parameter that exceeds one is left out whole; other strings are
// cut. Either is named in Event.omitted, since such a decision can no longer
// be replayed exactly.
const (
	// MaxEventBytes bounds a whole event, its sequence included.
	MaxEventBytes = 64 << 10
	maxPath       = 8 << 10
	// A SPIFFE ID is at most 2048 bytes (SPIFFE-ID section 2.3).
	maxID     = 2 << 10
	maxString = 512
	maxRule   = 256
	maxReason = 1 << 10
	maxDetail = 2 << 10
	// The whole Action.
	maxAction = 32 << 10
	maxValue  = 1 << 10
	// Headers together, and query parameters together, names included.
	maxFields = 8 << 10
	// Rules, and names in omitted, by count.
	maxRules       = 32
	maxOmitted     = 32
	maxOmittedName = 128
	maxSerial      = 64
)

// SchemaVersion is the value of Event.schema.
const SchemaVersion = 1

// Numbers of the fields of auditv1.Event.
const (
	numSchema protowire.Number = iota + 1
	numKind
	numTime
	numOutcome
	numMode
	numEnforced
	numDirection
	numLayer
	numSource
	numDestination
	numRequest
	numConnection
	numTokenStatus
	numTier
	numRules
	numRevision
	numReason
	numTraceID
	numLatency
	numGap
	numAction
	numOmitted
	numSequence protowire.Number = 31
)

// sequenceSize is the size of the sequence field on the wire.
const sequenceSize = 10

// Encoder writes events in the wire form of auditv1.Event, fields in ascending
// order and lengths minimal, without allocating. It is not safe for concurrent
// use.
type Encoder struct {
	permit *Permit
	b      []byte
	// omitted collects field 22, which comes after what it speaks of.
	omitted  []byte
	nOmitted int
	// State of a walk over headers or query.
	walk struct {
		num    protowire.Number
		prefix string
		allow  func(string) bool
		start  int
		all    bool
		lost   bool
	}
	visit                   func(string, []string) bool
	allowHeader, allowQuery func(string) bool
}

// NewEncoder makes an encoder that records what p permits.
func NewEncoder(p *Permit) *Encoder {
	e := &Encoder{permit: p}
	e.visit = e.value
	e.allowHeader = p.Header
	e.allowQuery = p.Query
	return e
}

// Append appends ev to b, without the sequence. What is written of a decision's
// Input is what policy can read of it, less what the permit withholds.
func (e *Encoder) Append(b []byte, ev *Event) []byte {
	e.b, e.omitted, e.nOmitted = b, e.omitted[:0], 0
	e.varint(numSchema, SchemaVersion)
	e.varint(numKind, uint64(ev.Kind))
	switch {
	case !ev.Time.IsZero():
		e.fixed64(numTime, uint64(ev.Time.UnixNano()))
	case ev.Input != nil && !ev.Input.Time.IsZero():
		e.fixed64(numTime, uint64(ev.Input.Time.UnixNano()))
	}
	e.varint(numOutcome, uint64(ev.Outcome))
	e.varint(numMode, uint64(ev.Mode))
	if ev.Enforced {
		e.varint(numEnforced, 1)
	}
	if ev.Input != nil {
		e.input(ev.Input, ev.Reads)
	}
	if d := ev.Decision; d != nil {
		e.decision(d)
	} else {
		e.text(numReason, ev.Reason, maxReason, "")
	}
	e.text(numTraceID, ev.TraceID, maxString, "")
	if ev.Latency > 0 {
		e.varint(numLatency, uint64(ev.Latency))
	}
	if ev.Gap != nil {
		e.gap(ev.Gap)
	}
	if ev.Action != nil {
		e.action(ev.Action)
	}
	out := append(e.b, e.omitted...)
	e.b = nil
	return out
}

// AppendSequence completes an event.
func AppendSequence(event []byte, sequence uint64) []byte {
	event = protowire.AppendTag(event, numSequence, protowire.Fixed64Type)
	return protowire.AppendFixed64(event, sequence)
}

// SequenceOf reads the sequence at the end of a complete event.
func SequenceOf(event []byte) (uint64, bool) {
	n := len(event) - sequenceSize
	if n < 0 || event[n] != 0xf9 || event[n+1] != 0x01 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(event[n+2:]), true
}

// KindOf reads the kind of an event that an Encoder wrote, without decoding
// the rest.
func KindOf(event []byte) auditv1.Kind {
	if len(event) >= 4 && event[0] == 0x08 && event[2] == 0x10 && event[1] < 0x80 && event[3] < 0x80 {
		return auditv1.Kind(event[3])
	}
	return auditv1.Kind_KIND_UNSPECIFIED
}

func (e *Encoder) input(in *policy.Input, reads *policy.Reads) {
	e.text(numDirection, in.Direction, maxString, "")
	e.text(numLayer, in.Layer, maxString, "")

	at := e.open(numSource)
	e.text(1, in.Source.ID, maxID, "source.id")
	e.text(2, in.Source.TrustDomain, maxString, "source.trust_domain")
	e.text(3, in.Source.Path, maxID, "source.path")
	e.text(4, in.Source.Authn, maxString, "source.authn")
	e.bytes(5, in.Source.Serial[:min(len(in.Source.Serial), maxSerial)])
	e.close(at)

	at = e.open(numDestination)
	e.text(1, in.Destination.Service, maxString, "destination.service")
	e.text(2, in.Destination.ID, maxID, "destination.id")
	if in.Destination.Port > 0 {
		e.varint(3, uint64(in.Destination.Port))
	}
	e.close(at)

	if in.Layer == policy.LayerRequest {
		e.request(&in.Request, reads)
	}

	c := &in.Connection
	at = e.open(numConnection)
	e.text(1, c.PeerIP, maxString, "connection.peer_ip")
	if c.PeerPort > 0 {
		e.varint(2, uint64(c.PeerPort))
	}
	e.text(3, c.ClientIP, maxString, "connection.client_ip")
	e.text(4, c.TLSVersion, maxString, "connection.tls_version")
	e.text(5, c.SNI, maxString, "connection.sni")
	e.text(6, c.ALPN, maxString, "connection.alpn")
	e.text(7, c.KeyExchange, maxString, "")
	e.close(at)

	e.text(numTokenStatus, in.TokenStatus, maxString, "token_status")
	if len(in.Tokens) > 0 {
		e.omit("", "tokens")
	}
}

func (e *Encoder) request(r *policy.Request, reads *policy.Reads) {
	at := e.open(numRequest)
	e.text(1, r.Protocol, maxString, "protocol")
	e.text(2, r.Method, maxString, "method")
	e.text(3, r.Host, maxString, "host")
	e.text(4, r.Path, maxPath, "path")
	e.text(5, r.GRPCService, maxString, "grpc.service")
	e.text(6, r.GRPCMethod, maxString, "grpc.method")
	if reads != nil {
		e.walk.num, e.walk.prefix, e.walk.allow = 7, "headers", e.allowHeader
		e.values(r.Headers, reads.Headers, reads.AllHeaders)
		e.walk.num, e.walk.prefix, e.walk.allow = 8, "query", e.allowQuery
		e.values(r.Query, reads.Query, reads.AllQuery)
	}
	if r.ContentLength != 0 {
		e.varint(9, protowire.EncodeZigZag(r.ContentLength))
	}
	e.close(at)
}

// values records the named values, or all of them.
func (e *Encoder) values(v policy.Values, named []string, all bool) {
	if v == nil {
		return
	}
	e.walk.start, e.walk.all, e.walk.lost = len(e.b), all, false
	if all {
		v.Each(e.visit)
		if e.walk.lost {
			e.omit("", e.walk.prefix)
		}
		return
	}
	for _, name := range named {
		if vs := v.Get(name); vs != nil {
			e.value(name, vs)
		}
	}
}

// value records one header or query parameter, whole or not at all.
func (e *Encoder) value(name string, values []string) bool {
	size := len(name)
	ok := e.walk.allow(name) && utf8.ValidString(name) && len(name) <= maxString
	for _, v := range values {
		size += len(v)
		ok = ok && len(v) <= maxValue && utf8.ValidString(v) && !looksLikeToken(v)
	}
	if !ok || len(e.b)-e.walk.start+size > maxFields || len(values) > maxFields/8 {
		if e.walk.all {
			e.walk.lost = true
		} else {
			e.omit(e.walk.prefix, name)
		}
		return true
	}
	at := e.open(e.walk.num)
	e.string(1, name)
	for _, v := range values {
		e.tag(2, protowire.BytesType)
		e.b = protowire.AppendString(e.b, v)
	}
	e.close(at)
	return true
}

func (e *Encoder) decision(d *policy.Decision) {
	e.varint(numTier, uint64(d.Tier))
	for i := range d.Rules[:min(len(d.Rules), maxRules)] {
		r := &d.Rules[i]
		at := e.open(numRules)
		e.text(1, r.ID, maxRule, "")
		e.text(2, r.File, maxRule, "")
		if r.Line > 0 {
			e.varint(3, uint64(r.Line))
		}
		e.close(at)
	}
	if !d.Revision.IsZero() {
		at := e.open(numRevision)
		e.varint(1, d.Revision.Epoch)
		e.varint(2, d.Revision.Number)
		e.bytes(3, d.Revision.Digest[:])
		e.close(at)
	}
	e.text(numReason, d.Reason, maxReason, "")
}

func (e *Encoder) gap(g *auditv1.Gap) {
	at := e.open(numGap)
	e.varint(1, g.FirstSequence)
	e.varint(2, g.Count)
	e.text(3, g.Cause, maxString, "")
	e.bytes(4, g.Signature)
	for _, c := range g.Certificates {
		e.tag(5, protowire.BytesType)
		e.b = protowire.AppendBytes(e.b, c)
	}
	e.close(at)
}

func (e *Encoder) action(a *auditv1.Action) {
	at := e.open(numAction)
	e.text(1, a.Verb, maxString, "")
	e.text(2, a.Actor, maxDetail, "")
	e.text(3, a.Object, maxString, "")
	e.text(4, a.ObjectId, maxDetail, "")
	for _, f := range a.Details {
		in := e.open(5)
		e.text(1, f.Name, maxString, "")
		for _, v := range f.Values {
			if len(e.b)-at > maxAction {
				break
			}
			value := e.open(2)
			e.cut(v, maxDetail)
			e.close(value)
		}
		e.close(in)
		if len(e.b)-at > maxAction {
			break
		}
	}
	e.close(at)
}

// text writes a string field; what had to be altered is named in omitted.
func (e *Encoder) text(num protowire.Number, s string, limit int, name string) {
	if s == "" {
		return
	}
	if len(s) <= limit && utf8.ValidString(s) {
		e.string(num, s)
		return
	}
	at := e.open(num)
	e.cut(s, limit)
	e.close(at)
	if name != "" {
		e.omit("", name)
	}
}

// cut appends at most limit bytes of s, with U+FFFD for what is not UTF-8.
func (e *Encoder) cut(s string, limit int) {
	start := len(e.b)
	for _, r := range s {
		if len(e.b)-start+utf8.RuneLen(r) > limit {
			return
		}
		e.b = utf8.AppendRune(e.b, r)
	}
}

func (e *Encoder) string(num protowire.Number, s string) {
	if s == "" {
		return
	}
	e.tag(num, protowire.BytesType)
	if len(s) < 0x80 {
		e.b = append(e.b, byte(len(s)))
	} else {
		e.b = protowire.AppendVarint(e.b, uint64(len(s)))
	}
	e.b = append(e.b, s...)
}

// tag writes the head of a field; one byte for most.
func (e *Encoder) tag(num protowire.Number, typ protowire.Type) {
	if num < 16 {
		e.b = append(e.b, byte(num)<<3|byte(typ))
		return
	}
	e.b = protowire.AppendTag(e.b, num, typ)
}

func (e *Encoder) bytes(num protowire.Number, v []byte) {
	if len(v) > 0 {
		e.tag(num, protowire.BytesType)
		e.b = protowire.AppendBytes(e.b, v)
	}
}

func (e *Encoder) varint(num protowire.Number, v uint64) {
	if v != 0 {
		e.tag(num, protowire.VarintType)
		e.b = protowire.AppendVarint(e.b, v)
	}
}

func (e *Encoder) fixed64(num protowire.Number, v uint64) {
	if v != 0 {
		e.tag(num, protowire.Fixed64Type)
		e.b = protowire.AppendFixed64(e.b, v)
	}
}

// open begins a nested field and leaves one byte for its length.
func (e *Encoder) open(num protowire.Number) int {
	e.tag(num, protowire.BytesType)
	e.b = append(e.b, 0)
	return len(e.b)
}

// close writes the length of the field opened at start in front of it, and
// moves the field where one byte is not enough.
func (e *Encoder) close(start int) {
	n := len(e.b) - start
	if n < 0x80 {
		e.b[start-1] = byte(n)
		return
	}
	var length [10]byte
	enc := protowire.AppendVarint(length[:0], uint64(n))
	e.b = append(e.b, enc[1:]...)
	copy(e.b[start-1+len(enc):], e.b[start:start+n])
	copy(e.b[start-1:], enc)
}

// omit names something that the record does not hold as it was.
func (e *Encoder) omit(prefix, name string) {
	if e.nOmitted++; e.nOmitted > maxOmitted {
		return
	}
	if len(name) > maxOmittedName || !utf8.ValidString(name) {
		// It came from the policy or from a request; the prefix must do.
		prefix, name = "", prefix
	}
	n := len(name)
	if prefix != "" {
		n += len(prefix) + 1
	}
	e.omitted = protowire.AppendTag(e.omitted, numOmitted, protowire.BytesType)
	e.omitted = protowire.AppendVarint(e.omitted, uint64(n))
	if prefix != "" {
		e.omitted = append(append(e.omitted, prefix...), '.')
	}
	e.omitted = append(e.omitted, name...)
}

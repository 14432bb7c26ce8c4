package program

import (
	"math"
	"time"
	"unicode/utf8"

	"github.com/writ-dev/writ/policy"
)

// field is a Field as an Evaluator reads it.
type field struct {
	Field
	shape shape
	many  bool
	// exact fields are only compared with texts of the policy, byte by byte, and
	// none of these has a replacement character. What topdown sees of a text
	// that is not UTF-8, with such characters in it, then compares alike: the
	// bytes of a character are never part of what is replaced.
	exact bool
	// token fields are read of one token at a time, or, overTokens, of all:
	// only an index does that.
	token, overTokens bool
	// lenient is a claim of which an index reads only what is a text: that it is
	// one is tested before it is read otherwise.
	lenient bool
	claim   []string
}

// slot remembers what a field holds for the length of one decision.
type slot struct {
	state    slotState
	text     string
	from, to uint32 // in run.values, when there may be many
}

type slotState uint8

const (
	slotUnread slotState = iota
	slotAbsent
	slotPresent
)

// run is the memory of one decision.
type run struct {
	in      *policy.Input
	request bool // the layer has a request
	now     int64
	// ask is set where something was read that topdown would see otherwise.
	ask     bool
	expires int64

	slots  []slot // by field
	loaded []uint32
	values []string
	token  *policy.Token
	// memo of shared conditions: generation<<1, and 1 if it holds.
	memo []uint32
	gen  uint32
	hits []uint32 // ranks of rules
	// checked is whether the segments were looked at as a whole.
	checked bool
	todo    []uint32 // nodes of the index
	buf     []byte   // texts that were derived
}

// begin reports whether the input is one that a Program decides.
func (r *run) begin(in *policy.Input) bool {
	r.request = in.Layer == policy.LayerRequest
	if !r.request && in.Layer != policy.LayerConnection || in.Time.IsZero() {
		return false
	}
	// What nanoseconds since 1970 can hold, anywhere in the world.
	const days = 2 * 24 * 60 * 60
	if s := in.Time.Unix(); s <= math.MinInt64/int64(time.Second)+days || s >= math.MaxInt64/int64(time.Second)-days {
		return false
	}
	r.in, r.now = in, in.Time.UnixNano()
	if r.gen++; r.gen >= 1<<31 {
		clear(r.memo)
		r.gen = 1
	}
	return true
}

// maxKept bounds what a run keeps for the next decision.
const maxKept = 64 << 10

// end forgets everything that belongs to the request.
func (r *run) end() {
	for _, i := range r.loaded {
		r.slots[i] = slot{}
	}
	r.in, r.token, r.ask, r.checked, r.expires = nil, nil, false, false, 0
	r.loaded, r.hits = r.loaded[:0], r.hits[:0]
	if len(r.values) > 0 {
		clear(r.values)
		r.values = r.values[:0]
	}
	r.buf = r.buf[:0]
	if cap(r.buf) > maxKept || cap(r.values) > maxKept/16 {
		r.buf, r.values = nil, nil
	}
}

// one is the value of a field that has at most one and is not of a token.
func (r *run) one(f *field, at uint32) (string, bool) {
	s := &r.slots[at]
	if s.state == slotUnread {
		r.read(f, s)
		r.loaded = append(r.loaded, at)
	}
	return s.text, s.state == slotPresent
}

func (r *run) read(f *field, s *slot) {
	s.state = slotAbsent
	text, ok := f.Field.text(r)
	if !ok || !f.exact && !r.valid(text) {
		return
	}
	if len(f.Via) > 0 {
		if text, ok = r.derive(text, true, f.Via); !ok {
			return
		}
	}
	s.state, s.text = slotPresent, text
}

// oneOf is one for any field that has at most one value.
func (r *run) oneOf(f *field, at uint32) (string, bool) {
	if f.token {
		text, ok := r.tokenText(f, r.token)
		return r.derive(text, ok, f.Via)
	}
	return r.one(f, at)
}

// all are the values of a field that may have many. Those of a token are good
// until drop.
func (r *run) all(f *field, at uint32) []string {
	if f.token && !f.overTokens {
		from := len(r.values)
		r.collect(f)
		return r.values[from:]
	}
	s := &r.slots[at]
	if s.state == slotUnread {
		s.state, s.from = slotPresent, uint32(len(r.values))
		if f.overTokens {
			for i := range r.in.Tokens {
				r.token = &r.in.Tokens[i]
				r.collect(f)
			}
			r.token = nil
		} else {
			r.collect(f)
		}
		s.to = uint32(len(r.values))
		r.loaded = append(r.loaded, at)
	}
	return r.values[s.from:s.to]
}

// drop gives the memory of values of one token back.
func (r *run) drop(values []string) {
	clear(values)
	r.values = r.values[:len(r.values)-len(values)]
}

// collect appends the values of f to r.values.
func (r *run) collect(f *field) {
	if f.Index != Any {
		text, ok := r.text(f)
		r.deriveAll(text, ok, f.Via)
		return
	}
	switch f.Base {
	case Segment:
		if r.request {
			r.collectAll(f, r.in.Request.Segments)
		}
	case Header, Query:
		r.collectAll(f, r.named(f))
	case TokenAudience:
		r.collectAll(f, r.token.Audience)
	case TokenClaimItem:
		for i := 0; ; i++ {
			text, more := r.claimItem(f, r.token, i)
			if !more {
				break
			}
			r.deriveAll(text, r.valid(text), f.Via)
		}
	}
}

func (r *run) collectAll(f *field, texts []string) {
	for _, text := range texts {
		r.deriveAll(text, f.exact || r.valid(text), f.Via)
	}
}

// valid asks where topdown would see a text with replacement characters.
func (r *run) valid(s string) bool {
	if isASCII(s) || utf8.ValidString(s) {
		return true
	}
	r.ask = true
	return false
}

// isASCII looks at eight bytes at a time; the last eight may overlap.
func isASCII(s string) bool {
	const high = 0x8080808080808080
	if len(s) < 8 {
		var all byte
		for i := range len(s) {
			all |= s[i]
		}
		return all < utf8.RuneSelf
	}
	all := word(s, len(s)-8)
	for i := 0; i+8 < len(s); i += 8 {
		all |= word(s, i)
	}
	return all&high == 0
}

// word is the eight bytes of s from i on, which the compiler reads as one.
func word(s string, i int) uint64 {
	s = s[i : i+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// text is the one text of f before its steps.
func (r *run) text(f *field) (string, bool) {
	if f.token {
		return r.tokenText(f, r.token)
	}
	s, ok := f.Field.text(r)
	return s, ok && (f.exact || r.valid(s))
}

func (f *Field) text(r *run) (string, bool) {
	in := r.in
	switch f.Base {
	case Direction:
		return in.Direction, true
	case Layer:
		return in.Layer, true
	case SourceID:
		return in.Source.ID, true
	case SourceTrustDomain:
		return in.Source.TrustDomain, true
	case SourcePath:
		return in.Source.Path, true
	case SourceAuthn:
		return in.Source.Authn, true
	case DestinationService:
		return in.Destination.Service, true
	case DestinationID:
		return in.Destination.ID, true
	case PeerIP:
		return in.Connection.PeerIP, true
	case ClientIP:
		return in.Connection.ClientIP, true
	case TLSVersion:
		return in.Connection.TLSVersion, true
	case SNI:
		return in.Connection.SNI, true
	case ALPN:
		return in.Connection.ALPN, true
	case TokenStatus:
		if in.TokenStatus == "" {
			return policy.TokenAbsent, true
		}
		return in.TokenStatus, true
	case Weekday:
		return time.Unix(0, r.now).UTC().Add(f.offset()).Weekday().String(), true
	}
	if !r.request {
		return "", false
	}
	q := &in.Request
	switch f.Base {
	case Protocol:
		return q.Protocol, true
	case Method:
		return q.Method, true
	case Host:
		return q.Host, true
	case Path:
		return q.Path, true
	case GRPCService:
		return q.GRPCService, q.Protocol == policy.GRPC
	case GRPCMethod:
		return q.GRPCMethod, q.Protocol == policy.GRPC
	case Segment:
		return element(q.Segments, f.Index)
	case Header, Query:
		return element(f.named(r), f.Index)
	}
	return "", false
}

// offset from UTC of a field that is read at one.
func (f *Field) offset() time.Duration { return time.Duration(f.Index-OffsetUTC) * time.Minute }

func element(texts []string, i int32) (string, bool) {
	if i < 0 || int(i) >= len(texts) {
		return "", false
	}
	return texts[i], true
}

func (r *run) named(f *field) []string { return f.Field.named(r) }

// named are the values of a header or query parameter, nil when absent.
func (f *Field) named(r *run) []string {
	values := r.in.Request.Headers
	if f.Base == Query || f.Base == QueryCount {
		values = r.in.Request.Query
	}
	if !r.request || values == nil {
		return nil
	}
	return values.Get(f.Name)
}

// number is the value of a field that is a number.
func (r *run) number(f *field) (int64, bool) {
	switch f.Base {
	case DestinationPort:
		return int64(r.in.Destination.Port), true
	case Time:
		return r.now, true
	case SecondOfDay:
		hour, minute, second := time.Unix(0, r.now).UTC().Add(f.offset()).Clock()
		return int64(hour*60*60 + minute*60 + second), true
	case ContentLength:
		return r.in.Request.ContentLength, r.request
	case SegmentCount:
		return int64(len(r.in.Request.Segments)), r.request
	case HeaderCount, QueryCount:
		values := r.named(f)
		return int64(len(values)), values != nil
	}
	return 0, false
}

// segments reports whether the segments as a whole are what topdown sees.
func (r *run) segments() bool {
	if !r.checked {
		r.checked = true
		for _, s := range r.in.Request.Segments {
			r.valid(s)
		}
	}
	return !r.ask
}

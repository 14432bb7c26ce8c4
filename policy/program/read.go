package program

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"

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
	// direct are the layers at which the field is exact and plain, a text that is
	// at so many bytes into the input: reading is cheaper than remembering.
	direct layers
	at     uintptr
	// token fields are read of one token at a time, or, overTokens, of all:
	// only an index does that.
	token, overTokens bool
	// lenient is a claim of which an index reads only what is a text: that it is
	// one is tested before it is read otherwise.
	lenient bool
	claim   []string
}

// layers is a set of layers.
type layers uint8

const (
	atConnection layers = 1 << iota
	atRequest
)

// slot remembers what a field holds for the length of one decision.
type slot struct {
	state    slotState
	text     string
	from, to uint32 // in memory.values, when there may be many
}

type slotState uint8

const (
	slotUnread slotState = iota
	slotAbsent
	slotPresent
)

// run is a decision on its way. It lies on the stack: most decisions need no
// other memory.
type run struct {
	in      *policy.Input
	pool    *sync.Pool
	mem     *memory // nil until needed
	token   *policy.Token
	expires int64
	layer   layers // one, or none when it is not known
	// ask is set where something was read that topdown would see otherwise.
	ask bool
	// checked is whether the segments were looked at as a whole.
	checked bool
	// n ranks of rules that hold, the first in few and the others in mem.hits.
	n   int
	few [4]uint32
}

// memory is what a run remembers of a request. It is pooled.
type memory struct {
	slots  []slot // by field
	loaded []uint32
	values []string
	buf    []byte // texts that were derived
	hits   []uint32
	// addr is what addressOf is as an address, if isAddr.
	addressOf string
	addr      netip.Addr
	isAddr    bool
	// memo of shared conditions: generation<<1, and 1 if it holds.
	memo []uint32
	gen  uint32
}

// understood reports whether the input is one that a Program decides: with a
// layer, and at a time that nanoseconds since 1970 can hold anywhere in the
// world; the zero Time is not.
func (r *run) understood() bool {
	const days = 2 * 24 * 60 * 60
	s := r.in.Time.Unix()
	return r.layer != 0 &&
		s > math.MinInt64/int64(time.Second)+days && s < math.MaxInt64/int64(time.Second)-days
}

func layerOf(in *policy.Input) layers {
	switch in.Layer {
	case policy.LayerRequest:
		return atRequest
	case policy.LayerConnection:
		return atConnection
	}
	return 0
}

// request reports whether there is one to read.
func (r *run) request() bool { return r.layer == atRequest }

func (r *run) memory() *memory {
	if r.mem == nil {
		r.mem = r.pool.Get().(*memory)
		if r.mem.gen++; r.mem.gen >= 1<<31 {
			clear(r.mem.memo)
			r.mem.gen = 1
		}
	}
	return r.mem
}

// hit notes a rule that holds.
func (r *run) hit(rank uint32) {
	if r.n < len(r.few) {
		r.few[r.n] = rank
	} else {
		m := r.memory()
		m.hits = append(m.hits, rank)
	}
	r.n++
}

// ranks of all rules that hold, ascending, each once.
func (r *run) ranks() []uint32 {
	m := r.memory()
	m.hits = append(m.hits, r.few[:min(r.n, len(r.few))]...)
	slices.Sort(m.hits)
	return slices.Compact(m.hits)
}

// maxKept bounds what is kept for the next decision.
const maxKept = 64 << 10

// end forgets everything that belongs to the request.
func (r *run) end() {
	m := r.mem
	if m == nil {
		return
	}
	for _, i := range m.loaded {
		m.slots[i] = slot{}
	}
	clear(m.values)
	m.addressOf, m.isAddr = "", false
	m.loaded, m.hits, m.values, m.buf = m.loaded[:0], m.hits[:0], m.values[:0], m.buf[:0]
	if cap(m.buf) > maxKept || cap(m.values) > maxKept/16 {
		m.buf, m.values = nil, nil
	}
	r.pool.Put(m)
}

// one is the value of a field that has at most one and is not of a token.
func (r *run) one(f *field, at uint32) (string, bool) {
	if s, ok := r.plain(f); ok {
		return s, true
	}
	return r.recall(f, at)
}

// plain is the value of a field that is read where it stands; recall has those
// of others. It is inlined where that matters.
func (r *run) plain(f *field) (string, bool) {
	if f.direct&r.layer == 0 {
		return "", false
	}
	return *textAt(r.in, f.at), true
}

// recall reads a field that is remembered for the length of the decision.
func (r *run) recall(f *field, at uint32) (string, bool) {
	m := r.memory()
	s := &m.slots[at]
	if s.state == slotUnread {
		r.read(f, s)
		m.loaded = append(m.loaded, at)
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

// address is s as an address. The last one is remembered: most decisions are
// about one address, which several conditions ask for.
func (r *run) address(s string) (netip.Addr, bool) {
	if m := r.memory(); m.addressOf != s {
		m.addressOf = s
		m.addr, m.isAddr = parseAddress(s)
	}
	return r.mem.addr, r.mem.isAddr
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
	m := r.memory()
	if f.token && !f.overTokens {
		from := len(m.values)
		r.collect(f)
		return m.values[from:]
	}
	s := &m.slots[at]
	if s.state == slotUnread {
		s.state, s.from = slotPresent, uint32(len(m.values))
		if f.overTokens {
			for i := range r.in.Tokens {
				r.token = &r.in.Tokens[i]
				r.collect(f)
			}
			r.token = nil
		} else {
			r.collect(f)
		}
		s.to = uint32(len(m.values))
		m.loaded = append(m.loaded, at)
	}
	return m.values[s.from:s.to]
}

// drop gives the memory of values of one token back.
func (r *run) drop(values []string) {
	clear(values)
	m := r.memory()
	m.values = m.values[:len(m.values)-len(values)]
}

// collect appends the values of f to memory.values.
func (r *run) collect(f *field) {
	if f.Index != Any {
		text, ok := r.text(f)
		r.deriveAll(text, ok, f.Via)
		return
	}
	switch f.Base {
	case Segment:
		if r.request() {
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
	if b := &bases[f.Base]; b.plain != nil {
		if b.ofRequest && !r.request() {
			return "", false
		}
		return *textAt(in, plainAt(b.plain)), true
	}
	switch f.Base {
	case TokenStatus:
		if in.TokenStatus == "" {
			return policy.TokenAbsent, true
		}
		return in.TokenStatus, true
	case Weekday:
		return in.Time.UTC().Add(f.offset()).Weekday().String(), true
	}
	if !r.request() {
		return "", false
	}
	q := &in.Request
	switch f.Base {
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

// textAt is the text that stands so far into in.
func textAt(in *policy.Input, offset uintptr) *string {
	return (*string)(unsafe.Add(unsafe.Pointer(in), offset))
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
	if !r.request() || values == nil {
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
		return r.in.Time.UnixNano(), true
	case SecondOfDay:
		hour, minute, second := r.in.Time.UTC().Add(f.offset()).Clock()
		return int64(hour*60*60 + minute*60 + second), true
	case ContentLength:
		return r.in.Request.ContentLength, r.request()
	case SegmentCount:
		return int64(len(r.in.Request.Segments)), r.request()
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

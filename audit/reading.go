package audit

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// Reading reads decisions from their events as InputOf and DecisionOf do, many
// one after the other and without building messages: all text of an event is
// one allocation, and the rest of the memory is used again. What it holds is
// valid until the next Read. The zero Reading is ready; it is not safe for
// concurrent use.
type Reading struct {
	Input    policy.Input
	Decision policy.Decision
	Mode     policy.Mode
	// Missing is Event.omitted; see InputOf.
	Missing []string

	text           string
	outcome        auditv1.Outcome
	kind           auditv1.Kind
	hasRequest     bool
	headers, query valueList
	segments       []string
	// values of headers and query parameters, which point into it.
	values []string
}

// errUnusual is an event that an Encoder does not write, and that protobuf may
// read all the same.
var errUnusual = errors.New("unusual event")

// Read reads an event. The errors are those of InputOf, or that it is no event.
func (r *Reading) Read(event []byte) error {
	r.reset(event)
	err := r.fields(event, 0, r.event)
	if err == nil {
		return r.finish()
	}
	if !errors.Is(err, errUnusual) {
		return err
	}
	// Somebody else's way to write it: read it as everybody does.
	ev := new(auditv1.Event)
	if err := proto.Unmarshal(event, ev); err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	in, missing, err := InputOf(ev)
	if err != nil {
		return err
	}
	d, err := DecisionOf(ev)
	if err != nil {
		return err
	}
	r.Input, r.Decision, r.Mode, r.Missing = *in, *d, policy.Mode(ev.Mode), missing
	return nil
}

func (r *Reading) reset(event []byte) {
	r.Input = policy.Input{}
	r.Decision.Reset()
	r.Mode, r.kind, r.outcome, r.hasRequest = 0, 0, 0, false
	r.Missing, r.headers, r.query, r.values = r.Missing[:0], r.headers[:0], r.query[:0], r.values[:0]
	r.text = string(event)
}

// finish does what needs the whole event.
func (r *Reading) finish() error {
	in := &r.Input
	if err := decidedAs(r.kind, r.outcome, auditv1.Tier(r.Decision.Tier)); err != nil {
		return err
	}
	r.Decision.Verdict = verdictOf(r.outcome)
	if in.Time.IsZero() {
		return errNoTime
	}
	in.Time = in.Time.UTC()
	switch {
	case in.Layer == policy.LayerConnection && !r.hasRequest:
		return nil
	case in.Layer != policy.LayerRequest || !r.hasRequest:
		return errLayer(in.Layer)
	}
	q := &in.Request
	q.Headers, q.Query = &r.headers, &r.query
	var err error
	r.segments, err = segmentsOf(r.segments[:0], q.Path, r.Missing)
	q.Segments = r.segments
	return err
}

// fields calls f with each field of the message in b, which begins at the given
// place of the event.
func (r *Reading) fields(b []byte, at int, f func(field) error) error {
	whole := len(b)
	var seen uint64
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errUnusual
		}
		b = b[n:]
		v := field{num: num, typ: typ, at: at + whole - len(b)}
		switch typ {
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			v.number, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(b)
			v.at += n - len(v.bytes)
		default:
			return errUnusual
		}
		if n < 0 || num > 63 {
			return errUnusual
		}
		b = b[n:]
		v.again = seen&(1<<num) != 0
		seen |= 1 << num
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

// field is one field of a message.
type field struct {
	num    protowire.Number
	typ    protowire.Type
	number uint64
	bytes  []byte
	// at is where its bytes begin in the event.
	at int
	// again is set where a field of this number came before.
	again bool
}

// str is the text of a field, which must be one, and stand once.
func (r *Reading) str(f field, into *string) error {
	if f.typ != protowire.BytesType || f.again {
		return errUnusual
	}
	return r.add(f, into)
}

func (r *Reading) add(f field, into *string) error {
	if f.typ != protowire.BytesType || !utf8.Valid(f.bytes) {
		return errUnusual
	}
	*into = r.text[f.at : f.at+len(f.bytes)]
	return nil
}

func number(f field, typ protowire.Type, limit uint64) (uint64, error) {
	if f.typ != typ || f.again || f.number > limit {
		return 0, errUnusual
	}
	return f.number, nil
}

func (r *Reading) message(f field, read func(field) error) error {
	if f.typ != protowire.BytesType {
		return errUnusual
	}
	return r.fields(f.bytes, f.at, read)
}

// once is message, for a field that is not repeated.
func (r *Reading) once(f field, read func(field) error) error {
	if f.again {
		return errUnusual
	}
	return r.message(f, read)
}

// maxEnum bounds enumerations: a larger number is none, and is left to
// protobuf.
const maxEnum = 1 << 16

func (r *Reading) event(f field) (err error) {
	in := &r.Input
	var n uint64
	switch f.num {
	case numKind:
		n, err = number(f, protowire.VarintType, maxEnum)
		r.kind = auditv1.Kind(n)
	case numTime:
		if n, err = number(f, protowire.Fixed64Type, 1<<64-1); n != 0 {
			in.Time = time.Unix(0, int64(n))
		}
	case numOutcome:
		n, err = number(f, protowire.VarintType, maxEnum)
		r.outcome = auditv1.Outcome(n)
	case numMode:
		n, err = number(f, protowire.VarintType, maxMode)
		r.Mode = policy.Mode(n)
	case numDirection:
		err = r.str(f, &in.Direction)
	case numLayer:
		err = r.str(f, &in.Layer)
	case numSource:
		err = r.once(f, r.source)
	case numDestination:
		err = r.once(f, r.destination)
	case numRequest:
		r.hasRequest = true
		err = r.once(f, r.request)
	case numConnection:
		err = r.once(f, r.connection)
	case numTokenStatus:
		err = r.str(f, &in.TokenStatus)
	case numTier:
		n, err = number(f, protowire.VarintType, uint64(policy.Enforcement))
		r.Decision.Tier = policy.Tier(n)
	case numRules:
		var rule policy.Rule
		if err = r.message(f, func(f field) error { return r.rule(f, &rule) }); err == nil {
			r.Decision.Rules = append(r.Decision.Rules, rule)
		}
	case numRevision:
		err = r.once(f, r.revision)
		if err == nil && r.Decision.Revision.Digest == [32]byte{} {
			err = errUnusual // No digest at all: an error, or zeros.
		}
	case numReason:
		err = r.str(f, &r.Decision.Reason)
	case numOmitted:
		var name string
		if err = r.add(f, &name); err == nil {
			r.Missing = append(r.Missing, name)
		}
	case numTraceID:
		var id string
		err = r.str(f, &id) // For its form alone.
	case numGap, numAction:
		err = errUnusual // Not of a decision.
	}
	return err
}

// maxMode is that of the largest Mode.
const maxMode = uint64(policy.Observe)

func (r *Reading) source(f field) error {
	s := &r.Input.Source
	switch f.num {
	case 1:
		return r.str(f, &s.ID)
	case 2:
		return r.str(f, &s.TrustDomain)
	case 3:
		return r.str(f, &s.Path)
	case 4:
		return r.str(f, &s.Authn)
	case 5:
		if f.typ != protowire.BytesType || f.again {
			return errUnusual
		}
		s.Serial = f.bytes
	}
	return nil
}

func (r *Reading) destination(f field) (err error) {
	d := &r.Input.Destination
	switch f.num {
	case 1:
		return r.str(f, &d.Service)
	case 2:
		return r.str(f, &d.ID)
	case 3:
		var n uint64
		n, err = number(f, protowire.VarintType, 1<<32-1)
		d.Port = int(n)
	}
	return err
}

func (r *Reading) connection(f field) (err error) {
	c := &r.Input.Connection
	switch f.num {
	case 1:
		return r.str(f, &c.PeerIP)
	case 2:
		var n uint64
		n, err = number(f, protowire.VarintType, 1<<32-1)
		c.PeerPort = int(n)
	case 3:
		return r.str(f, &c.ClientIP)
	case 4:
		return r.str(f, &c.TLSVersion)
	case 5:
		return r.str(f, &c.SNI)
	case 6:
		return r.str(f, &c.ALPN)
	case 7:
		return r.str(f, &c.KeyExchange)
	}
	return err
}

func (r *Reading) request(f field) (err error) {
	q := &r.Input.Request
	switch f.num {
	case 1:
		return r.str(f, &q.Protocol)
	case 2:
		return r.str(f, &q.Method)
	case 3:
		return r.str(f, &q.Host)
	case 4:
		return r.str(f, &q.Path)
	case 5:
		return r.str(f, &q.GRPCService)
	case 6:
		return r.str(f, &q.GRPCMethod)
	case 7:
		return r.named(f, &r.headers)
	case 8:
		return r.named(f, &r.query)
	case 9:
		var n uint64
		n, err = number(f, protowire.VarintType, 1<<64-1)
		q.ContentLength = protowire.DecodeZigZag(n)
	}
	return err
}

// named reads a header or query parameter.
func (r *Reading) named(f field, into *valueList) error {
	name, first := "", len(r.values)
	err := r.message(f, func(f field) error {
		switch f.num {
		case 1:
			return r.str(f, &name)
		case 2:
			var v string
			if err := r.add(f, &v); err != nil {
				return err
			}
			r.values = append(r.values, v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Later values move to other memory at worst; these stay as they are.
	return into.add(name, r.values[first:len(r.values):len(r.values)])
}

func (r *Reading) rule(f field, rule *policy.Rule) (err error) {
	switch f.num {
	case 1:
		return r.str(f, &rule.ID)
	case 2:
		return r.str(f, &rule.File)
	case 3:
		var n uint64
		n, err = number(f, protowire.VarintType, 1<<32-1)
		rule.Line = int(n)
	}
	return err
}

func (r *Reading) revision(f field) (err error) {
	v := &r.Decision.Revision
	switch f.num {
	case 1:
		v.Epoch, err = number(f, protowire.VarintType, 1<<64-1)
	case 2:
		v.Number, err = number(f, protowire.VarintType, 1<<64-1)
	case 3:
		if f.typ != protowire.BytesType || f.again || len(f.bytes) != len(v.Digest) {
			return errUnusual
		}
		copy(v.Digest[:], f.bytes)
	}
	return err
}

// valueList is a policy.Values of the few that a record holds.
type valueList []namedValues

type namedValues struct {
	name   string
	values []string
}

// add refuses a name that is there already.
func (l *valueList) add(name string, values []string) error {
	for _, v := range *l {
		if v.name == name {
			return errUnusual
		}
	}
	if values == nil {
		values = []string{} // Without values, and there.
	}
	*l = append(*l, namedValues{name, values})
	return nil
}

// Get implements policy.Values.
func (l *valueList) Get(name string) []string {
	for i := range *l {
		if (*l)[i].name == name {
			return (*l)[i].values
		}
	}
	return nil
}

// Each implements policy.Values.
func (l *valueList) Each(f func(string, []string) bool) {
	for _, v := range *l {
		if !f(v.name, v.values) {
			return
		}
	}
}

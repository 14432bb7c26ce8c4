package audit

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/writ-dev/writ/audit/auditv1"
)

// Checker tells whether an event can be read, as proto.Unmarshal would, without
// building the message: a collector does it for every event that arrives. It is
// safe for concurrent use.
type Checker struct{ event *shape }

// shape is what matters of a message: which fields are text, which hold
// messages, and which may stand in it once.
type shape struct {
	text map[protowire.Number]bool
	sub  map[protowire.Number]*shape
	once uint64
}

// NewChecker prepares a Checker from the descriptor of auditv1.Event.
func NewChecker() *Checker {
	return &Checker{event: shapeOf((*auditv1.Event)(nil).ProtoReflect().Descriptor())}
}

// shapeOf follows a descriptor; the messages of an Event do not hold
// themselves.
func shapeOf(d protoreflect.MessageDescriptor) *shape {
	s := &shape{text: make(map[protowire.Number]bool), sub: make(map[protowire.Number]*shape)}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if !f.IsList() && !f.IsMap() {
			// A number above 63 would not be held to this; there is none.
			s.once |= 1 << f.Number()
		}
		switch f.Kind() {
		case protoreflect.StringKind:
			s.text[f.Number()] = true
		case protoreflect.MessageKind:
			s.sub[f.Number()] = shapeOf(f.Message())
		}
	}
	return s
}

var (
	errNumber   = errors.New("field number out of range")
	errNotText  = errors.New("text that is not UTF-8")
	errTwice    = errors.New("a field that may stand once stands twice")
	errSchema   = fmt.Errorf("not an event of schema %d", SchemaVersion)
	errSequence = errors.New("sequence is not the one of its place")
)

// Check reports whether event is a whole event of this schema with the given
// sequence. It is stricter than protobuf in one thing: no field that is not
// repeated stands twice, so that all readers see the same event.
func (c *Checker) Check(event []byte, sequence uint64) error {
	if len(event) > MaxEventBytes {
		return ErrTooLarge
	}
	if n, ok := SequenceOf(event); !ok || n != sequence {
		return errSequence
	}
	// An Encoder begins with schema and kind, and readers look for them there.
	if KindOf(event) == auditv1.Kind_KIND_UNSPECIFIED || event[1] != SchemaVersion {
		return errSchema
	}
	return c.event.check(event)
}

func (s *shape) check(b []byte) error {
	var have uint64
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if num > protowire.MaxValidNumber {
			return errNumber
		}
		b = b[n:]
		// One reader would take the first, another the last.
		bit := uint64(1) << num & s.once
		if have&bit != 0 {
			return errTwice
		}
		have |= bit
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if s.text[num] && !utf8.Valid(v) {
			return errNotText
		}
		if sub := s.sub[num]; sub != nil {
			if err := sub.check(v); err != nil {
				return err
			}
		}
	}
	return nil
}

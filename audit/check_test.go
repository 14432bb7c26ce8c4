package audit

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/writ-dev/writ/audit/auditv1"
)

func TestCheck(t *testing.T) {
	good := encode(NewEncoder(nil), sample(), 5)
	c := NewChecker()
	if err := c.Check(good, 5); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _ = c.Check(good, 5) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if err := c.Check(good, 6); !errors.Is(err, errSequence) {
		t.Errorf("another sequence: %v", err)
	}
	if err := c.Check(good[:len(good)-1], 5); err == nil {
		t.Error("cut: no error")
	}
	other := slices.Clone(good)
	other[1] = 2
	if err := c.Check(other, 5); !errors.Is(err, errSchema) {
		t.Errorf("schema 2: %v", err)
	}
	large := AppendSequence(append(slices.Clone(good), make([]byte, MaxEventBytes)...), 5)
	if err := c.Check(large, 5); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large: %v", err)
	}
}

// Where a field stands twice, some readers take the first and some the last.
func TestCheckTwice(t *testing.T) {
	c := NewChecker()
	good := NewEncoder(nil).Append(nil, sample())
	for name, more := range map[string][]byte{
		"kind":         {0x10, 0x02},
		"kind as text": {0x12, 0x00},
		"reason":       {0x8a, 0x01, 0x01, 'r'},
		"source":       {0x4a, 0x00},
		"in a gap":     {0xa2, 0x01, 0x04, 0x10, 0x01, 0x10, 0x02},
	} {
		if err := c.Check(AppendSequence(append(slices.Clone(good), more...), 5), 5); !errors.Is(err, errTwice) {
			t.Errorf("%s: %v, want errTwice", name, err)
		}
	}
	twice := AppendSequence(AppendSequence(slices.Clone(good), 4), 5)
	if err := c.Check(twice, 5); !errors.Is(err, errTwice) {
		t.Errorf("sequence: %v, want errTwice", err)
	}
}

// Every field that may stand once has a bit.
func TestFieldNumbers(t *testing.T) {
	var all func(d protoreflect.MessageDescriptor)
	all = func(d protoreflect.MessageDescriptor) {
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			if f.Number() > 63 {
				t.Errorf("%s has number %d, want at most 63", f.FullName(), f.Number())
			}
			if f.Message() != nil {
				all(f.Message())
			}
		}
	}
	all((*auditv1.Event)(nil).ProtoReflect().Descriptor())
}

// FuzzCheck holds the Checker to protobuf: both read an event, or neither does,
// but for fields that stand twice.
func FuzzCheck(f *testing.F) {
	f.Add(NewEncoder(nil).Append(nil, sample()))
	f.Add([]byte{0x08, 0x01, 0x10, 0x01, 0x3a, 0x01, 0xff})
	f.Add([]byte{0x08, 0x01, 0x10, 0x01, 0x3b, 0x3c})
	c := NewChecker()
	f.Fuzz(func(t *testing.T, b []byte) {
		got, want := c.event.check(b), proto.Unmarshal(b, new(auditv1.Event))
		if got == errTwice {
			return
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("%x: %v, protobuf says %v", b, got, want)
		}
	})
}

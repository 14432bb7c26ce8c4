package audit

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

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

// FuzzCheck holds the Checker to protobuf: both read an event, or neither does.
func FuzzCheck(f *testing.F) {
	f.Add(NewEncoder(nil).Append(nil, sample()))
	f.Add([]byte{0x08, 0x01, 0x10, 0x01, 0x3a, 0x01, 0xff})
	f.Add([]byte{0x08, 0x01, 0x10, 0x01, 0x3b, 0x3c})
	c := NewChecker()
	f.Fuzz(func(t *testing.T, b []byte) {
		got, want := c.event.check(b), proto.Unmarshal(b, new(auditv1.Event))
		if (got == nil) != (want == nil) {
			t.Fatalf("%x: %v, protobuf says %v", b, got, want)
		}
	})
}

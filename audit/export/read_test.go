package export

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/audit/auditv1"
)

// What is exported and read again exports as it did, and its events are those
// that were exported.
func TestReadJSONLines(t *testing.T) {
	var first, second bytes.Buffer
	erased := stored(t, 5, decision())
	erased.Record = &auditv1.Record{Salt: make([]byte, 16)}
	records := append(all(t), erased)
	w := NewJSONLines(&first)
	for _, s := range records {
		if err := w.Write(s); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	again := NewJSONLines(&second)
	i := 0
	for s, err := range ReadJSONLines(&first) {
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Write(s); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			var got auditv1.Event
			if err := proto.Unmarshal(s.Record.Event, &got); err != nil {
				t.Fatal(err)
			}
			want := decision()
			want.Sequence = 1
			if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
				t.Errorf("event (-exported +read):\n%s", diff)
			}
		}
		i++
	}
	if i != len(records) {
		t.Errorf("%d records, want %d", i, len(records))
	}
	again.Close()
	var want bytes.Buffer
	w = NewJSONLines(&want)
	for _, s := range records {
		w.Write(s)
	}
	w.Close()
	// A gap's signature is not exported: that it had one is lost.
	if diff := cmp.Diff(strings.ReplaceAll(want.String(), `,"gap_signed":true`, ""), second.String()); diff != "" {
		t.Errorf("export (-first +second):\n%s", diff)
	}
}

func TestReadJSONLinesRefuses(t *testing.T) {
	for line, want := range map[string]string{
		`{"knd":"decision"}`:     "line 2: not a record",
		`{"kind":"x"}`:           `line 2: kind: "x" is not one`,
		`{"tier":"x"}`:           `line 2: tier: "x" is not one`,
		`{"time":"x"}`:           "line 2: time: ",
		`{"chain":"x"}`:          "line 2: chain: ",
		`{} {}`:                  "line 2: more than one",
		strings.Repeat(" ", 1e6): "line 2: longer than",
	} {
		var got error
		for _, err := range ReadJSONLines(strings.NewReader("{}\n" + line + "\n")) {
			got = err
		}
		if got == nil || !strings.Contains(got.Error(), want) {
			t.Errorf("%.30q: %v, want %q", line, got, want)
		}
	}
}

// FuzzReadJSONLines: what is read can be written, and read as the same.
func FuzzReadJSONLines(f *testing.F) {
	var b bytes.Buffer
	w := NewJSONLines(&b)
	for _, s := range all(f) {
		if err := w.Write(s); err != nil {
			f.Fatal(err)
		}
	}
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		for s, err := range ReadJSONLines(bytes.NewReader(data)) {
			if err != nil {
				return
			}
			r := FromStored(s)
			again, err := r.Stored()
			if err != nil {
				t.Fatalf("%+v: %v", r, err)
			}
			if diff := cmp.Diff(s, again, protocmp.Transform()); diff != "" && r.Raw == "" {
				t.Fatalf("read again (-first +second):\n%s", diff)
			}
		}
	})
}

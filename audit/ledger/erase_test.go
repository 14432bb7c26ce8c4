package ledger

import (
	"slices"
	"strings"
	"testing"

	"github.com/writ-dev/writ/audit"
)

// A record can be erased and everything still verifies, and says so. Only the
// whole of it goes, and only where its hash stays.
func TestErased(t *testing.T) {
	f := evidenceFor(t)
	fo := forge(t, f.cfg.Dir, 0)
	erase := func(b *batch) { b.records[1].event, b.records[1].salt = nil, make([]byte, audit.SaltSize) }
	fo.edit(3, erase)
	fo.write()
	f.verified(25)
	r := f.verify()
	if want := "sequence 7 was erased"; r.Erased != 1 || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, want) }) {
		t.Errorf("%d erased, notes %q, want one with %q", r.Erased, r.Notes, want)
	}
	// The ledger goes on with it.
	l := f.open()
	f.append(l, webs, 1)
	if got := all(t, l, nil, 0); len(got) != 26 || len(got[11].Record.Event) != 0 {
		t.Errorf("%d records", len(got))
	}
	f.close(l)
	f.verified(26)

	for name, tc := range map[string]struct {
		change func(*batch)
		want   Kind
	}{
		"its hash too":   {func(b *batch) { b.records[1].hash[0] ^= 1 }, Rewritten},
		"its salt stays": {func(b *batch) { b.records[1].salt[0] = 1 }, Altered},
		"one taken out":  {func(b *batch) { b.records = slices.Delete(b.records, 1, 2) }, Missing},
	} {
		t.Run(name, func(t *testing.T) {
			f := evidenceFor(t)
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(3, func(b *batch) { erase(b); tc.change(b) })
			fo.write()
			r := f.verify()
			if len(r.Problems) == 0 || r.Problems[0].Kind != tc.want {
				t.Errorf("problems %v, want %v first", r.Problems, tc.want)
			}
		})
	}
}

package fetch

import (
	"testing"
)

// FuzzGit: whatever git says, it is read or refused.
func FuzzGit(f *testing.F) {
	f.Add([]byte("100644 blob 0123 5\torders.rego\x00"), []byte("0123 blob 5\nhello\n"))
	f.Add([]byte("120000 blob 0123 5\torders.rego\x00"), []byte("0123 missing\n"))
	f.Fuzz(func(t *testing.T, listing, contents []byte) {
		blobs, err := parseTree(listing)
		if err != nil {
			return
		}
		files, err := parseBatch(contents, blobs)
		if err != nil {
			return
		}
		if len(files) != len(blobs) {
			t.Fatalf("%d files of %d blobs", len(files), len(blobs))
		}
		for i, f := range files {
			if !f.IsSource() || int64(len(f.Content)) != blobs[i].size {
				t.Errorf("%q, %d bytes", f.Path, len(f.Content))
			}
		}
	})
}

package bundle

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Difference is a file in which two slices differ.
type Difference struct {
	File string `json:"file"`
	// What is wrong with it, from the point of view of the first.
	What string `json:"what"`
}

// Compare finds in which files s differs from what was rebuilt of sources, byte
// for byte; what only a control plane can say (number, time) is taken from s.
func (s *Slice) Compare(rebuilt *Slice) []Difference {
	var found []Difference
	differ := func(file, format string, args ...any) {
		found = append(found, Difference{file, fmt.Sprintf(format, args...)})
	}
	if s.Revision.Digest != rebuilt.Revision.Digest {
		differ(manifestFile, "the slice is of sources %x, the sources given are %x", s.Revision.Digest, rebuilt.Revision.Digest)
	}
	if !slices.Equal(s.Services, rebuilt.Services) {
		differ(manifestFile, "the slice is for services %v, the sources say %v", s.Services, rebuilt.Services)
	}
	have, want := s.files(), rebuilt.files()
	all := maps.Clone(have)
	maps.Copy(all, want)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		a, inSlice := have[path]
		b, inSources := want[path]
		switch {
		case !inSources:
			differ(path, "is in the slice, and the sources give no such file")
		case !inSlice:
			differ(path, "is missing in the slice")
		case !bytes.Equal(a, b):
			differ(path, "differs: %d bytes in the slice, %d of the sources, the first difference at byte %d", len(a), len(b), firstDifference(a, b))
		}
	}
	return found
}

// files are all files under the signature but the manifest.
func (s *Slice) files() map[string][]byte {
	files := map[string][]byte{}
	for _, f := range s.Content {
		files[f.Path] = f.Content
	}
	if s.Program != nil {
		files[programFile] = s.Program
	}
	return files
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// SliceOwner reads for whom a sealed slice is. It verifies nothing: OpenSlice
// does.
func SliceOwner(data []byte) (spiffeid.ID, error) {
	a, err := readArchive(data, func(f File) bool { return f.isSource() || f.Path == programFile })
	if err != nil {
		return spiffeid.ID{}, err
	}
	s, err := readManifest(a.Content)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("policy slice: .manifest: %w", err)
	}
	return s.SPIFFEID, nil
}

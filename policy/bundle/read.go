package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/writ-dev/writ/policy"
)

// ReadDir reads the sources in dir: .rego files, rules.yaml and *.rules.yaml,
// data.json and data.yaml, and a .manifest at the top. Other files are not part of a policy, and neither is
// anything in a directory whose name starts with a dot. Symbolic links are
// followed to files as long as they stay inside dir (so a mounted ConfigMap
// works); one that leads out is an error.
func ReadDir(dir string) (Content, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	defer root.Close()
	var c collector
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && strings.HasPrefix(path.Base(name), "."):
			return fs.SkipDir
		case entry.IsDir() || !(File{Path: name}).isSource():
			return nil
		}
		if err := checkPath(name); err != nil {
			return err
		}
		data, err := readIn(root, name)
		if err != nil {
			return err
		}
		return c.add(File{Path: name, Content: data})
	})
	if err != nil {
		return nil, fmt.Errorf("read policy in %s: %w", dir, err)
	}
	return c.content()
}

func readIn(root *os.Root, name string) ([]byte, error) {
	// Looked at before it is opened, because opening a named pipe waits for
	// its writer.
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, refuse(name, "not a regular file")
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
}

// Archive is an OPA bundle in transit: sources and what signs them.
type Archive struct {
	Content Content
	// signatures is the .signatures.json, nil when there is none.
	signatures []byte
}

// Signed reports whether the archive carries signatures, valid or not.
func (a *Archive) Signed() bool { return a.signatures != nil }

// ReadArchive reads a tar.gz. It holds regular files with plain relative
// paths, a leading / or ./ aside, and nothing that is not part of a policy.
// What is wrong with it is a policy.Refused.
func ReadArchive(data []byte) (*Archive, error) { return readArchive(data, File.isSource) }

func readArchive(data []byte, belongs func(File) bool) (*Archive, error) {
	if len(data) > MaxArchiveBytes {
		return nil, refuse("", "the bundle is larger than %d bytes", MaxArchiveBytes)
	}
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, broken(err)
	}
	// One byte over the limit is enough to notice; headers take some more.
	tr := tar.NewReader(io.LimitReader(zr, MaxContentBytes+MaxFiles*2048))
	a := new(Archive)
	var c collector
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, broken(err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		f, err := readEntry(tr, h)
		if err != nil {
			return nil, err
		}
		if f.Path == signaturesFile {
			if a.signatures != nil {
				return nil, refuse(f.Path, "the file is there twice")
			}
			a.signatures = f.Content
			continue
		}
		if !belongs(f) {
			return nil, refuse(f.Path, "not part of a policy: .rego, .rules.yaml, data.json and data.yaml are")
		}
		if err := c.add(f); err != nil {
			return nil, err
		}
	}
	a.Content, err = c.content()
	if err != nil {
		return nil, err
	}
	return a, nil
}

func readEntry(tr *tar.Reader, h *tar.Header) (File, error) {
	if h.Typeflag != tar.TypeReg {
		return File{}, refuse("", "%q is a link or a special file: only regular files are allowed", h.Name)
	}
	name := strings.TrimPrefix(strings.TrimPrefix(h.Name, "."), "/")
	if strings.HasPrefix(h.Name, ".") && !strings.HasPrefix(h.Name, "./") {
		name = h.Name
	}
	if err := checkPath(name); err != nil {
		return File{}, err
	}
	if limit := (File{Path: name}).limit(); h.Size > int64(limit) {
		return File{}, refuse(name, "larger than %d bytes: make several files", limit)
	}
	data, err := io.ReadAll(io.LimitReader(tr, MaxFileBytes+1))
	if err != nil {
		return File{}, broken(err)
	}
	return File{Path: name, Content: data}, nil
}

func broken(err error) error {
	return policy.Refused{{Code: policy.ProblemParse, Message: fmt.Sprintf("the bundle is not a readable tar.gz: %v", err)}}
}

// Archive writes the content and its signatures, which may be nil, as a
// tar.gz. The same content gives the same bytes.
func (c Content) Archive(signatures []byte) ([]byte, error) {
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	write := func(f File) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "/" + f.Path, Mode: 0o644, Size: int64(len(f.Content)), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write bundle: %s: %w", f.Path, err)
		}
		_, err := tw.Write(f.Content)
		return err
	}
	for _, f := range c {
		if err := write(f); err != nil {
			return nil, err
		}
	}
	if signatures != nil {
		if err := write(File{signaturesFile, signatures}); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	if buf.Len() > MaxArchiveBytes {
		return nil, refuse("", "the bundle is larger than %d bytes", MaxArchiveBytes)
	}
	return buf.Bytes(), nil
}

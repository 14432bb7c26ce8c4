package fetch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/policy/bundle"
)

// dirty marks a commit that is not quite what was read.
const dirty = "-dirty"

// maxGitOutput bounds a listing of a tree, bytes.
const maxGitOutput = 16 << 20

// commitOf is the commit that dir is checked out at, "" where there is no work
// tree, no commit or no git; the error says which.
func commitOf(ctx context.Context, dir string) (string, error) {
	commit, err := git(ctx, dir, nil, maxGitOutput, "rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD^{commit}")
	if err != nil {
		return "", fmt.Errorf("%s is not in a git work tree with a commit: %w", dir, err)
	}
	changes, err := git(ctx, dir, nil, maxGitOutput, "status", "--porcelain", "--untracked-files=all", "--", ".")
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	name := strings.TrimSpace(string(commit))
	if len(changes) > 0 {
		name += dirty
	}
	return name, nil
}

// readRef reads what dir holds in the commit that ref names, byte for byte as
// it is kept, without touching the work tree.
func readRef(ctx context.Context, dir, ref string) (*Source, error) {
	out, err := git(ctx, dir, nil, maxGitOutput, "rev-parse", "--verify", "--quiet", "--end-of-options", ref+"^{commit}")
	if err != nil {
		return nil, fmt.Errorf("%s: no commit is called %q: %w", dir, ref, err)
	}
	commit := strings.TrimSpace(string(out))
	prefix, err := git(ctx, dir, nil, maxGitOutput, "rev-parse", "--show-prefix")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	tree := commit + ":" + strings.TrimSuffix(strings.TrimSuffix(string(prefix), "\n"), "/")
	listing, err := git(ctx, dir, nil, maxGitOutput, "ls-tree", "-r", "-z", "--long", "--full-tree", "--end-of-options", tree)
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", dir, ref, err)
	}
	blobs, err := parseTree(listing)
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", dir, ref, err)
	}
	var ids bytes.Buffer
	var size int64
	for _, b := range blobs {
		ids.WriteString(b.id + "\n")
		size += b.size + 256
	}
	contents, err := git(ctx, dir, &ids, size+1, "cat-file", "--batch")
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", dir, ref, err)
	}
	files, err := parseBatch(contents, blobs)
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", dir, ref, err)
	}
	content, err := bundle.NewContent(files)
	if err != nil {
		return nil, err
	}
	return &Source{Content: content, Commit: commit}, nil
}

type blob struct {
	id, path string
	size     int64
}

// parseTree reads `git ls-tree -r -z --long` and keeps what is part of a
// policy, as bundle.ReadDir does.
func parseTree(listing []byte) ([]blob, error) {
	var blobs []blob
	var total int64
	for entry := range strings.SplitSeq(strings.TrimSuffix(string(listing), "\x00"), "\x00") {
		if entry == "" {
			continue
		}
		meta, name, ok := strings.Cut(entry, "\t")
		fields := strings.Fields(meta) // mode, type, id, size
		if !ok || len(fields) != 4 {
			return nil, fmt.Errorf("git lists %.80q", entry)
		}
		if hidden(path.Dir(name)) || !(bundle.File{Path: name}).IsSource() {
			continue
		}
		if fields[0] != "100644" && fields[0] != "100755" {
			return nil, fmt.Errorf("%s is a link: only files are read from a commit", name)
		}
		size, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("git lists %.80q", entry)
		}
		if total += size; size > bundle.MaxFileBytes || total > bundle.MaxContentBytes || len(blobs) == bundle.MaxFiles {
			return nil, fmt.Errorf("%s: too large, or too much in all", name)
		}
		blobs = append(blobs, blob{id: fields[2], path: name, size: size})
	}
	return blobs, nil
}

// hidden reports whether a directory's path has a part that starts with a dot.
func hidden(dir string) bool {
	return dir != "." && (strings.HasPrefix(dir, ".") || strings.Contains(dir, "/."))
}

// parseBatch reads `git cat-file --batch`: a line and the bytes for each blob.
func parseBatch(contents []byte, blobs []blob) ([]bundle.File, error) {
	r := bufio.NewReader(bytes.NewReader(contents))
	files := make([]bundle.File, 0, len(blobs))
	for _, b := range blobs {
		line, err := r.ReadString('\n')
		if want := fmt.Sprintf("%s blob %d\n", b.id, b.size); err != nil || line != want {
			return nil, fmt.Errorf("%s: git has no such blob", b.path)
		}
		data := make([]byte, b.size+1)
		if _, err := io.ReadFull(r, data); err != nil || data[b.size] != '\n' {
			return nil, fmt.Errorf("%s: git cuts it short", b.path)
		}
		files = append(files, bundle.File{Path: b.path, Content: data[:b.size]})
	}
	return files, nil
}

// git runs git in dir with at most limit bytes of output. It takes no locks,
// starts no hooks, monitors or pagers, and fetches nothing. A directory that is a
// repository without .git, as a commit can hold one, is none to it: its
// configuration could name programs to run.
func git(ctx context.Context, dir string, stdin io.Reader, limit int64, args ...string) ([]byte, error) {
	program, err := exec.LookPath("git")
	if err != nil {
		return nil, errors.New("git is not installed")
	}
	cmd := exec.CommandContext(ctx, program, append([]string{
		"--no-optional-locks", "--no-pager", "--literal-pathspecs", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
		"-c", "safe.bareRepository=explicit", // Since git 2.38.
	}, args...)...)
	cmd.Dir, cmd.Stdin = dir, stdin
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1")
	out, stderr := &limited{left: limit}, &limited{left: 4096, forget: true}
	cmd.Stdout, cmd.Stderr = out, stderr
	if err := cmd.Run(); err != nil {
		if said := strings.TrimSpace(stderr.String()); said != "" {
			first, _, _ := strings.Cut(said, "\n")
			return nil, fmt.Errorf("git %s: %s", args[0], first)
		}
		return nil, fmt.Errorf("git %s: %w", args[0], err)
	}
	return out.Bytes(), nil
}

// limited takes so many bytes; more is an error, or forgotten.
type limited struct {
	bytes.Buffer
	left   int64
	forget bool
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(len(p)) <= l.left {
		l.left -= int64(len(p))
		return l.Buffer.Write(p)
	}
	if !l.forget {
		return 0, errors.New("more output than was asked for")
	}
	l.Buffer.Write(p[:l.left])
	l.left = 0
	return len(p), nil
}

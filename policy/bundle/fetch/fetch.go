// Package fetch reads policy sources from where they are: a directory, a git
// work tree or one of its refs, an OPA bundle in a file, or one behind an URL.
//
// Open reads once, for a person or CI; a Poller follows a bundle server by
// OPA's bundle protocol, for a control plane.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// Options says how sources are read. The zero Options reads what is there.
type Options struct {
	// GitRef reads the tree of this ref, and not the files of the directory.
	GitRef string
	// RequireClean refuses a directory with changes that are not committed,
	// and one that is not in a git work tree.
	RequireClean bool
	// Keys, when there are any, are those of which one must have signed a
	// bundle. A directory carries no signature and is refused with them.
	Keys bundle.Keys
	// HTTP says how an URL is read.
	HTTP HTTP
}

// Source is sources as they were read.
type Source struct {
	Content bundle.Content
	// Signed is the bundle as it came, when it carries signatures.
	Signed []byte
	// KeyID names the key that signed it, when Options has keys.
	KeyID string
	// Commit is the git commit of a directory, with "-dirty" when files differ
	// from it; empty when it is in no work tree.
	Commit string
	// Remote is whether it came over the network.
	Remote bool
}

// Open reads the sources at name: a directory, a tar.gz, or an https URL (http
// for loopback only). What is wrong with what was read is a policy.Refused.
func Open(ctx context.Context, name string, opts Options) (*Source, error) {
	if IsURL(name) {
		if opts.GitRef != "" || opts.RequireClean {
			return nil, fmt.Errorf("%s: a git ref is read from a directory", name)
		}
		data, err := opts.HTTP.get(ctx, name)
		if err != nil {
			return nil, err
		}
		return read(name, data, opts, true)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	if info.IsDir() {
		return openDir(ctx, name, opts)
	}
	if opts.GitRef != "" || opts.RequireClean {
		return nil, fmt.Errorf("%s: a git ref is read from a directory", name)
	}
	data, err := readFile(name, info)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	return read(name, data, opts, false)
}

// IsURL reports whether Open would read name from a server.
func IsURL(name string) bool {
	return strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://")
}

func openDir(ctx context.Context, dir string, opts Options) (*Source, error) {
	if len(opts.Keys) > 0 {
		return nil, fmt.Errorf("%s: a directory carries no signature that a verification key could verify", dir)
	}
	if opts.GitRef != "" {
		return readRef(ctx, dir, opts.GitRef)
	}
	content, err := bundle.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	src := &Source{Content: content}
	if src.Commit, err = commitOf(ctx, dir); err != nil && opts.RequireClean {
		return nil, err
	}
	if opts.RequireClean && strings.HasSuffix(src.Commit, dirty) {
		return nil, fmt.Errorf("%s: files differ from commit %s: commit them, or leave out --require-clean", dir, strings.TrimSuffix(src.Commit, dirty))
	}
	return src, nil
}

// readFile reads a file that is not larger than a bundle may be; opening a
// named pipe would wait for its writer.
func readFile(name string, info fs.FileInfo) ([]byte, error) {
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: neither a directory nor a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, bundle.MaxArchiveBytes+1))
}

func read(name string, data []byte, opts Options, remote bool) (*Source, error) {
	shown := name
	if remote {
		shown = Name(name)
	}
	archive, err := bundle.ReadArchive(data)
	if err != nil {
		var refused policy.Refused
		if !errors.As(err, &refused) {
			return nil, fmt.Errorf("%s: %w", shown, err)
		}
		for i := range refused {
			if refused[i].File == "" {
				refused[i].Message = shown + ": " + refused[i].Message
			}
		}
		return nil, refused
	}
	src := &Source{Content: archive.Content, Remote: remote}
	if archive.Signed() {
		src.Signed = data
	}
	if len(opts.Keys) > 0 {
		if src.KeyID, err = archive.Verify(opts.Keys, bundle.ScopeSources); err != nil {
			return nil, policy.Refused{{Code: policy.ProblemSignature, Message: err.Error()}}
		}
	}
	return src, nil
}

// get reads the bundle behind an URL once.
func (h HTTP) get(ctx context.Context, url string) ([]byte, error) {
	client, err := h.client(url)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	req, err := h.request(ctx, url)
	if err != nil {
		return nil, err
	}
	resp, err := do(client, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: the server answers %s", Name(url), resp.Status)
	}
	return readBody(Name(url), resp)
}

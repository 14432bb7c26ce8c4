package fetch_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/fetch"
)

const allow = "package services.orders\n\nallow := true\n"

func newKey(t testing.TB) (*ecdsa.PrivateKey, bundle.Keys) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	keys, err := bundle.NewKeys(&key.PublicKey)
	check(t, err)
	return key, keys
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func content(text string) bundle.Content {
	return bundle.Content{{Path: "orders.rego", Content: []byte(text)}}
}

func pack(t testing.TB, c bundle.Content, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	var signatures []byte
	var err error
	if key != nil {
		signatures, err = c.Sign(key, bundle.ScopeSources)
		check(t, err)
	}
	data, err := c.Archive(signatures)
	check(t, err)
	return data
}

func write(t testing.TB, name, text string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(name), 0o755))
	check(t, os.WriteFile(name, []byte(text), 0o644))
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// needGit skips where there is no git, which CI may not.
func needGit(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("git is not installed")
		}
		t.Skip("git is not installed")
	}
}

// TestHostileDirectory: a directory that is a repository itself, as a commit can
// hold one, brings its own configuration, and that can name programs.
func TestHostileDirectory(t *testing.T) {
	needGit(t)
	root := t.TempDir()
	dir, ran := filepath.Join(root, "policy"), filepath.Join(root, "ran")
	write(t, filepath.Join(dir, "orders.rego"), allow)
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "one")
	git(t, dir, "config", "filter.x.clean", "touch "+ran)
	git(t, dir, "config", "core.worktree", dir)
	write(t, filepath.Join(dir, ".gitattributes"), "* filter=x\n")
	check(t, os.Chtimes(filepath.Join(dir, "orders.rego"), time.Unix(1, 0), time.Unix(1, 0)))
	inside, err := os.ReadDir(filepath.Join(dir, ".git"))
	check(t, err)
	for _, e := range inside {
		check(t, os.Rename(filepath.Join(dir, ".git", e.Name()), filepath.Join(dir, e.Name())))
	}
	check(t, os.Remove(filepath.Join(dir, ".git")))
	src, err := fetch.Open(t.Context(), dir, fetch.Options{})
	check(t, err)
	if src.Commit != "" || len(src.Content) != 1 {
		t.Errorf("read: %+v", src)
	}
	if _, err := os.Stat(ran); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program of the directory's ran: %v", err)
	}
}

func TestGit(t *testing.T) {
	needGit(t)
	root := t.TempDir()
	dir := filepath.Join(root, "deploy", "policy")
	git(t, root, "init", "-q", "-b", "main")
	write(t, filepath.Join(dir, "orders.rego"), allow)
	write(t, filepath.Join(dir, "sub", "data.json"), "{}")
	write(t, filepath.Join(dir, "README.md"), "no policy")
	write(t, filepath.Join(dir, ".hidden", "x.rego"), "package x\n")
	write(t, filepath.Join(root, "other.rego"), "package other\n")
	git(t, root, "add", ".")
	git(t, root, "commit", "-q", "-m", "one")
	first := git(t, root, "rev-parse", "HEAD")
	want, err := bundle.ReadDir(dir)
	check(t, err)

	open := func(opts fetch.Options) (*fetch.Source, error) { return fetch.Open(t.Context(), dir, opts) }
	src, err := open(fetch.Options{RequireClean: true})
	check(t, err)
	if diff := cmp.Diff(&fetch.Source{Content: want, Commit: first}, src); diff != "" {
		t.Errorf("clean tree (-want +got):\n%s", diff)
	}
	// What is elsewhere in the work tree does not make this directory dirty.
	write(t, filepath.Join(root, "other.rego"), "package other2\n")
	if src, err = open(fetch.Options{RequireClean: true}); err != nil || src.Commit != first {
		t.Errorf("changes elsewhere: %v, %v", src, err)
	}
	write(t, filepath.Join(dir, "orders.rego"), allow+"# more\n")
	if src, err = open(fetch.Options{}); err != nil || src.Commit != first+"-dirty" {
		t.Errorf("changed file: %v, %v", src, err)
	}
	if _, err = open(fetch.Options{RequireClean: true}); err == nil || !strings.Contains(err.Error(), "differ") {
		t.Errorf("--require-clean on a changed file: %v", err)
	}
	src, err = open(fetch.Options{GitRef: "main"})
	check(t, err)
	if diff := cmp.Diff(&fetch.Source{Content: want, Commit: first}, src); diff != "" {
		t.Errorf("ref (-want +got):\n%s", diff)
	}
	if have, _ := os.ReadFile(filepath.Join(dir, "orders.rego")); !strings.Contains(string(have), "# more") {
		t.Error("reading a ref touched the work tree")
	}
	for _, ref := range []string{"nothing", "--help", "main:deploy", ""} {
		if ref == "" {
			continue
		}
		if _, err := open(fetch.Options{GitRef: ref}); err == nil {
			t.Errorf("ref %q was read", ref)
		}
	}
	check(t, os.Remove(filepath.Join(dir, "orders.rego")))
	check(t, os.Symlink("../../other.rego", filepath.Join(dir, "orders.rego")))
	git(t, root, "add", ".")
	git(t, root, "commit", "-q", "-m", "link")
	if _, err := open(fetch.Options{GitRef: "HEAD"}); err == nil || !strings.Contains(err.Error(), "link") {
		t.Errorf("a link in a commit: %v", err)
	}
	plain := t.TempDir()
	write(t, filepath.Join(plain, "orders.rego"), allow)
	if src, err := fetch.Open(t.Context(), plain, fetch.Options{}); err != nil || src.Commit != "" {
		t.Errorf("no work tree: %v, %v", src, err)
	}
	if _, err := fetch.Open(t.Context(), plain, fetch.Options{RequireClean: true}); err == nil {
		t.Error("--require-clean outside of a work tree")
	}
}

func TestBundles(t *testing.T) {
	key, keys := newKey(t)
	_, others := newKey(t)
	signed, unsigned := pack(t, content(allow), key), pack(t, content(allow), nil)
	for name, c := range map[string]struct {
		data []byte
		keys bundle.Keys
		fail string
	}{
		"signed":                {signed, keys, ""},
		"signed, nobody asks":   {signed, nil, ""},
		"unsigned, nobody asks": {unsigned, nil, ""},
		"unsigned":              {unsigned, keys, "not signed"},
		"signed by another":     {signed, others, "not trusted here"},
		"no bundle":             {[]byte("<html>"), keys, "tar.gz"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bundle.tar.gz")
			check(t, os.WriteFile(file, c.data, 0o600))
			src, err := fetch.Open(t.Context(), file, fetch.Options{Keys: c.keys})
			if c.fail != "" {
				if err == nil || !strings.Contains(err.Error(), c.fail) {
					t.Errorf("got %v, want %q", err, c.fail)
				}
				return
			}
			check(t, err)
			if diff := cmp.Diff(content(allow), src.Content); diff != "" {
				t.Error(diff)
			}
			if isSigned := src.Signed != nil; isSigned != strings.HasPrefix(name, "signed") {
				t.Errorf("signed: %v", isSigned)
			}
		})
	}
}

func TestURL(t *testing.T) {
	key, keys := newKey(t)
	data := pack(t, content(allow), key)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token went elsewhere")
		}
		w.Write(data)
	}))
	defer elsewhere.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/bundle.tar.gz", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write(data)
	})
	mux.Handle("/here", http.RedirectHandler("/bundle.tar.gz", http.StatusFound))
	mux.Handle("/away", http.RedirectHandler(elsewhere.URL, http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no length
		w.Write(make([]byte, bundle.MaxArchiveBytes+1))
	})
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	write(t, token, "secret\n")

	trusted := fetch.HTTP{CAFile: ca, TokenFile: token}
	for name, c := range map[string]struct {
		url  string
		http fetch.HTTP
		fail string
	}{
		"good":               {server.URL + "/bundle.tar.gz", trusted, ""},
		"redirect here":      {server.URL + "/here", trusted, ""},
		"redirect away":      {server.URL + "/away", trusted, "another server"},
		"redirect for ever":  {server.URL + "/loop", trusted, "redirects"},
		"without its token":  {server.URL + "/bundle.tar.gz", fetch.HTTP{CAFile: ca}, "401"},
		"unknown authority":  {server.URL + "/bundle.tar.gz?key=secret", fetch.HTTP{TokenFile: token}, "certificate"},
		"too large":          {server.URL + "/large", trusted, "larger than"},
		"not there":          {server.URL + "/nothing?key=secret", trusted, "404"},
		"plain, not local":   {"http://example.org/bundle.tar.gz", trusted, "https"},
		"with a password":    {"https://me:secret@127.0.0.1/bundle.tar.gz", trusted, "token"},
		"without a host":     {"https:///bundle.tar.gz", trusted, "host"},
		"token is not there": {server.URL + "/bundle.tar.gz", fetch.HTTP{CAFile: ca, TokenFile: ca + "x"}, "token"},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := fetch.Open(t.Context(), c.url, fetch.Options{Keys: keys, HTTP: c.http})
			switch {
			case c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)):
				t.Errorf("got %v, want %q", err, c.fail)
			case c.fail == "" && err != nil:
				t.Error(err)
			case c.fail == "" && !src.Remote:
				t.Error("it is not said to come from the network")
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

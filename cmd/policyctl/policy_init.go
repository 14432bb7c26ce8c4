package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

//go:embed skeleton
var skeleton embed.FS

func newPolicyInitCmd(a *app) *cobra.Command {
	var s skeletonConfig
	cmd := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Begin a policy directory",
		Long: `Write the beginning of a policy into DIR, "policy" if none is given: the
catalogue, the rules of one service, a guardrail, and tests of both. It passes
"policy check", "lint" and "test". No file is overwritten: if one is there,
nothing is written.

With --rules the rules are YAML instead of Rego; the tests are Rego either way.

With -f the trust domain and the service come from a mesh file, which is the
catalogue, too.`,
		Example: `  policyctl policy init --service orders --trust-domain example.org
  policyctl policy init --rules -f mesh.yaml policy/`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: directoryArg,
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "policy"
			if len(args) == 1 {
				dir = args[0]
			}
			if err := s.complete(); err != nil {
				return err
			}
			files, err := s.files()
			if err != nil {
				return fmt.Errorf("policy init: %w", err)
			}
			if err := writeSkeleton(dir, files); err != nil {
				return fmt.Errorf("policy init: %w", err)
			}
			return a.initialized(dir, files)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.Service, "service", "", `name of the first service; "hello", or the first of the mesh file`)
	f.StringVar(&s.TrustDomain, "trust-domain", "", `trust domain; "example.org", or that of the mesh file`)
	f.BoolVar(&s.yaml, "rules", false, "write YAML rules instead of Rego")
	_ = cmd.RegisterFlagCompletionFunc("service", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("trust-domain", cobra.NoFileCompletions)
	meshFlag(cmd, &s.meshFile)
	return cmd
}

// skeletonConfig fills the templates.
type skeletonConfig struct {
	Service, TrustDomain string
	meshFile             string
	yaml                 bool
}

// complete takes from the mesh file what no flag said, and refuses names that
// are none.
func (s *skeletonConfig) complete() error {
	if s.meshFile != "" {
		m, err := mesh.Load(s.meshFile)
		if err != nil {
			return err
		}
		if err := s.fromMesh(m); err != nil {
			return fmt.Errorf("%s: %w", s.meshFile, err)
		}
	}
	if s.Service == "" {
		s.Service = "hello"
	}
	if s.TrustDomain == "" {
		s.TrustDomain = "example.org"
	}
	if err := spiffeid.ValidatePathSegment(s.Service); err != nil {
		return fmt.Errorf("--service %q: a name is made of letters, digits, '.', '_' and '-'", s.Service)
	}
	if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil || strings.Contains(s.TrustDomain, "/") {
		return fmt.Errorf("--trust-domain %q: want a name such as example.org", s.TrustDomain)
	}
	return nil
}

func (s *skeletonConfig) fromMesh(m *mesh.Mesh) error {
	if s.TrustDomain != "" && s.TrustDomain != m.TrustDomain {
		return fmt.Errorf("its trust domain is %s, not %s", m.TrustDomain, s.TrustDomain)
	}
	s.TrustDomain = m.TrustDomain
	for i := range m.Services {
		if m.Services[i].Listens() && (s.Service == "" || s.Service == m.Services[i].Name) {
			s.Service = m.Services[i].Name
			return nil
		}
	}
	if s.Service != "" {
		return fmt.Errorf("service %q does not listen there", s.Service)
	}
	return errors.New("no service listens there")
}

// skeletonFile is one file to write.
type skeletonFile struct {
	path string
	text []byte
}

func (s *skeletonConfig) files() ([]skeletonFile, error) {
	templates, err := template.New("").Option("missingkey=error").ParseFS(skeleton, "skeleton/*.*")
	if err == nil && s.yaml { // Of the same name, the later one is taken.
		templates, err = templates.ParseFS(skeleton, "skeleton/rules/*")
	}
	if err != nil {
		return nil, err
	}
	var files []skeletonFile
	for _, t := range templates.Templates() {
		name := t.Name()
		if name == "" || s.meshFile != "" && name == "data.yaml" || s.yaml && (name == "service.rego" || name == "guardrails.rego") {
			continue
		}
		var text bytes.Buffer
		if err := t.Execute(&text, s); err != nil {
			return nil, err
		}
		// The name of a package takes another form by the service's name.
		source := bundle.File{Path: name, Content: text.Bytes()}
		if source.IsModule() {
			if source.Content, err = opa.Format(source); err != nil {
				return nil, err
			}
		}
		// A few names would make another file of it: a test, a hidden one.
		if rest, ok := strings.CutPrefix(name, "service"); ok && !strings.HasSuffix(s.Service, "_test") &&
			!strings.HasPrefix(s.Service, ".") && !strings.HasPrefix(s.Service, "guardrails") {
			name = s.Service + rest
		}
		files = append(files, skeletonFile{name, source.Content})
	}
	slices.SortFunc(files, func(a, b skeletonFile) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// writeSkeleton writes all files or, when one is there already or cannot be
// written, none.
func writeSkeleton(dir string, files []skeletonFile) error {
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.path)); err == nil {
			return fmt.Errorf("%s is there already; nothing was written", filepath.Join(dir, f.path))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var made []string // In this order; what is there already is not ours to remove.
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append([]string{d}, made...)
	}
	err := makeSkeleton(dir, files, &made)
	if err != nil {
		for _, name := range slices.Backward(made) {
			if gone := os.Remove(name); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	return err
}

// makeSkeleton adds the files that it makes to made.
func makeSkeleton(dir string, files []skeletonFile, made *[]string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, f := range files {
		// O_EXCL: one that appeared meanwhile is not overwritten either.
		file, err := os.OpenFile(filepath.Join(dir, f.path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return err
		}
		*made = append(*made, file.Name())
		_, err = file.Write(f.text)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) initialized(dir string, files []skeletonFile) error {
	result := struct {
		Dir   string   `json:"dir"`
		Files []string `json:"files"`
	}{Dir: dir}
	for _, f := range files {
		result.Files = append(result.Files, f.path)
	}
	return a.emit(result, func(w io.Writer) error {
		for _, name := range result.Files {
			fmt.Fprintln(w, terminalSafe(filepath.Join(dir, name)))
		}
		_, err := fmt.Fprintf(w, "next: policyctl policy test %s\n", terminalSafe(dir))
		return err
	})
}

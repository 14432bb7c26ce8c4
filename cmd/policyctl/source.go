package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/fetch"
)

// sourceHelp is what each command that takes a SOURCE says about it.
const sourceHelp = `SOURCE is a policy directory, an OPA bundle (tar.gz), or the https URL of one
(http for a loopback address). In a git work tree the commit is noted, and
--git-ref reads the tree of a ref without touching the files.`

// problemEmpty is the code of sources without any file of a policy.
const problemEmpty = "empty"

// rootRuleFile is what "policy build" adds to a policy.
const rootRuleFile = "writ/decision.rego"

// sourceFlags say where policy is read and how it is trusted.
type sourceFlags struct {
	mesh, gitRef       string
	requireClean       bool
	verificationKeys   []string
	tokenFile, caCerts string
	// mayBeEmpty is for who takes a part away.
	mayBeEmpty bool
}

func (s *sourceFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	meshFlag(cmd, &s.mesh)
	f.StringVar(&s.gitRef, "git-ref", "", "read the directory as it is in this commit, branch or tag")
	f.BoolVar(&s.requireClean, "require-clean", false, "refuse a directory that differs from its git commit")
	f.StringSliceVar(&s.verificationKeys, "verification-key", nil, "public key file (PEM, ECDSA P-256) that must have signed a bundle; may be repeated")
	f.StringVar(&s.tokenFile, "token-file", "", "file with the bearer token that an URL asks for")
	f.StringVar(&s.caCerts, "ca-file", "", "authorities (PEM) to trust for an URL, in place of the system's")
	for _, name := range []string{"verification-key", "ca-file"} {
		_ = cmd.MarkFlagFilename(name, "pem")
	}
	_ = cmd.RegisterFlagCompletionFunc("git-ref", cobra.NoFileCompletions)
}

// open reads the sources at name; with a mesh file, the catalogue comes from
// there, as it does in "policyctl up".
func (s *sourceFlags) open(ctx context.Context, name string) (*fetch.Source, error) {
	keys, err := bundle.LoadKeys(s.verificationKeys...)
	if err != nil {
		return nil, fmt.Errorf("verification key: %w", err)
	}
	src, err := fetch.Open(ctx, name, fetch.Options{
		GitRef: s.gitRef, RequireClean: s.requireClean, Keys: keys,
		HTTP: fetch.HTTP{TokenFile: s.tokenFile, CAFile: s.caCerts},
	})
	if err != nil {
		return nil, err
	}
	if err := s.plausible(name, src.Content); err != nil || s.mesh == "" {
		return src, err
	}
	m, err := mesh.Load(s.mesh)
	if err != nil {
		return nil, err
	}
	if _, there := src.Content.File(catalogueFile); there {
		return nil, fmt.Errorf("%s: services are described by the mesh file", filepath.Join(name, catalogueFile))
	}
	data, err := json.Marshal(catalogue(m))
	if err != nil {
		return nil, err
	}
	src.Signed = nil // It is not what was signed any more.
	src.Content, err = bundle.NewContent(append(src.Content, bundle.File{Path: catalogueFile, Content: data}))
	return src, err
}

// plausible refuses what cannot have been meant to be a policy.
func (s *sourceFlags) plausible(name string, content bundle.Content) error {
	_, manifest := content.File(".manifest")
	_, root := content.File(rootRuleFile)
	switch {
	case manifest && root:
		return policy.Refused{{File: rootRuleFile, Code: policy.ProblemType, Message: "this is a bundle for stock OPA, made by policy build: give its sources"}}
	case !s.mayBeEmpty && !slices.ContainsFunc(content, func(f bundle.File) bool { return f.IsModule() || f.IsData() || f.IsRules() }):
		return policy.Refused{{Code: problemEmpty, Message: fmt.Sprintf("no .rego, rules or data files in %s: is this the policy directory?", shownName(name))}}
	}
	return nil
}

// shownName is name without what may be secret in an URL.
func shownName(name string) string {
	if fetch.IsURL(name) {
		return fetch.Name(name)
	}
	return name
}

// sealed is a policy on its way to the control plane.
type sealed struct {
	archive  []byte
	commit   string
	problems []policy.Problem
	signed   bool
	files    int
}

// explain adds to problems what the control plane cannot know: which flag was
// left out.
func (s *sealed) explain(problems []policy.Problem) []policy.Problem {
	for i := range problems {
		if problems[i].Code == policy.ProblemSignature && !s.signed {
			problems[i].Message += ": give the publisher's key with --key"
		}
	}
	return problems
}

// seal reads the sources at name, signs them with the key in keyFile, and packs
// them. A bundle that is signed already goes as it is.
func (s *sourceFlags) seal(ctx context.Context, name, keyFile string) (*sealed, error) {
	out, err := s.trySeal(ctx, name, keyFile)
	var limits policy.Refused
	if errors.As(err, &limits) {
		return &sealed{problems: limits}, nil
	}
	return out, err
}

func (s *sourceFlags) trySeal(ctx context.Context, name, keyFile string) (*sealed, error) {
	src, err := s.open(ctx, name)
	if err != nil {
		return nil, err
	}
	out := &sealed{commit: src.Commit, files: len(src.Content)}
	switch {
	case keyFile == "" && src.Signed != nil:
		out.archive, out.signed = src.Signed, true
		return out, nil
	case keyFile != "" && src.Signed != nil:
		return nil, fmt.Errorf("%s is signed already: leave out --key", name)
	case keyFile != "" && src.Remote:
		return nil, fmt.Errorf("%s: what is signed should be looked at first: download it", name)
	}
	var signatures []byte
	out.signed = keyFile != ""
	if out.signed {
		// A data file that cannot be read cannot be hashed; say where.
		if _, problems := src.Content.Data(); len(problems) > 0 {
			return &sealed{problems: problems}, nil
		}
		key, err := readPrivateKey(keyFile)
		if err != nil {
			return nil, err
		}
		if signatures, err = src.Content.Sign(key, bundle.ScopeSources); err != nil {
			return nil, err
		}
	}
	out.archive, err = src.Content.Archive(signatures)
	return out, err
}

func sourceArg(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/policyv1"
)

type policyVerify struct {
	from            sourceFlags
	workload, slice string
	number          uint64
	decisionKeys    []string
	rebuild         bool
}

// verified is the JSON form of policyctl policy verify.
type verified struct {
	OK       bool   `json:"ok"`
	SPIFFEID string `json:"spiffe_id"`
	Revision string `json:"revision"`
	// Sources is the digest that the slice names.
	Sources string `json:"source_digest"`
	// Rebuilt is the digest of the sources given, Signed whether each of them
	// was verified; empty and false without --rebuild.
	Rebuilt     string              `json:"rebuilt_digest,omitempty"`
	Signed      bool                `json:"sources_verified"`
	Files       int                 `json:"files"`
	Differences []bundle.Difference `json:"differences"`
}

func newPolicyVerifyCmd(a *app) *cobra.Command {
	var v policyVerify
	cmd := &cobra.Command{
		Use:   "verify [SOURCE…]",
		Short: "Prove that a slice of policy is what its sources give",
		Long: `Fetch the slice of policy that a workload gets, or read the one that a sidecar
keeps, and verify its signature. With --rebuild, rebuild it from the sources
given, all parts of the revision, and compare every file of it, the compiled
program included, to the byte. Differences are listed by file and end the
program with exit code 2, as does a slice that is damaged or that no decision
key signed.

` + sourceHelp + ` Sources
are verified with --verification-key.`,
		Example: `  policyctl policy verify --spiffe-id spiffe://example.org/svc/orders
  policyctl policy verify --rebuild --spiffe-id spiffe://example.org/svc/orders policy/
  policyctl policy verify --rebuild --slice slice.tar.gz --decision-key decision.pem \
      --verification-key publisher.pub.pem bundle.tar.gz`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := v.run(cmd.Context(), a, args)
			if err != nil {
				return fmt.Errorf("policy verify: %w", err)
			}
			if err := a.emit(result, result.write); err != nil {
				return err
			}
			if !result.OK {
				return &exitError{code: 2}
			}
			return nil
		},
	}
	v.from.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&v.rebuild, "rebuild", false, "rebuild the slice from the sources and compare")
	f.StringVar(&v.workload, "spiffe-id", "", "workload whose slice the control plane gives")
	f.StringVar(&v.slice, "slice", "", "file with a slice, as a sidecar keeps it (slice.tar.gz)")
	f.Uint64Var(&v.number, "revision", 0, "revision to take the slice of (default the one in force)")
	f.StringSliceVar(&v.decisionKeys, "decision-key", nil, "public key file (PEM) that must have signed the slice (default <data-dir>/public/decision.pem)")
	cmd.MarkFlagsMutuallyExclusive("spiffe-id", "slice")
	cmd.MarkFlagsOneRequired("spiffe-id", "slice")
	_ = cmd.MarkFlagFilename("decision-key", "pem")
	_ = cmd.MarkFlagFilename("slice", "gz")
	for _, name := range []string{"spiffe-id", "revision"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

func (v *policyVerify) run(ctx context.Context, a *app, sources []string) (*verified, error) {
	if v.rebuild != (len(sources) > 0) {
		return nil, errors.New("--rebuild takes the sources of the revision, all parts of it")
	}
	slice, err := v.open(ctx, a)
	if err != nil {
		return nil, err
	}
	result := &verified{
		SPIFFEID: slice.SPIFFEID.String(), Revision: slice.Revision.String(), Sources: hex.EncodeToString(slice.Revision.Digest[:]),
		Files: len(slice.Content), Differences: []bundle.Difference{},
	}
	if slice.Program != nil {
		result.Files++
	}
	if v.rebuild {
		content, err := v.sources(ctx, sources)
		if err != nil {
			return nil, err
		}
		if err := inCatalogue(content, slice.SPIFFEID); err != nil && v.workload != "" {
			return nil, fmt.Errorf("--spiffe-id: %w", err)
		}
		digest := content.Digest()
		result.Rebuilt, result.Signed = hex.EncodeToString(digest[:]), len(v.from.verificationKeys) > 0
		rebuilt, err := rebuildSlice(ctx, content, slice)
		if err != nil {
			return nil, err
		}
		if found := slice.Compare(rebuilt); len(found) > 0 {
			result.Differences = found
		}
	}
	result.OK = len(result.Differences) == 0
	return result, nil
}

// open gets the slice and verifies it.
func (v *policyVerify) open(ctx context.Context, a *app) (*bundle.Slice, error) {
	files := v.decisionKeys
	if len(files) == 0 {
		files = []string{filepath.Join(a.dataDir, "public", "decision.pem")}
	}
	keys, err := bundle.LoadKeys(files...)
	if err != nil {
		return nil, fmt.Errorf("decision key (name it with --decision-key): %w", err)
	}
	if v.slice != "" {
		data, err := os.ReadFile(v.slice)
		if err != nil {
			return nil, err
		}
		id, err := bundle.SliceOwner(data)
		if err != nil {
			return nil, notInOrder(fmt.Errorf("%s: %w", v.slice, err))
		}
		slice, err := bundle.OpenSlice(data, keys, id)
		if err != nil {
			return nil, notInOrder(fmt.Errorf("%s: %w", v.slice, err))
		}
		return slice, nil
	}
	id, err := spiffeid.FromString(v.workload)
	if err != nil {
		return nil, fmt.Errorf("--spiffe-id: %w", err)
	}
	var resp *policyv1.SliceResponse
	err = a.policyAdmin(func(c policyv1.AdminClient) (err error) {
		resp, err = c.Slice(ctx, &policyv1.SliceRequest{SpiffeId: id.String(), Number: v.number}, largeAnswer())
		return err
	})
	if err != nil {
		return nil, err
	}
	slice, err := bundle.OpenSlice(resp.GetBundle(), keys, id)
	if err != nil {
		return nil, notInOrder(err)
	}
	return slice, nil
}

// notInOrder is the end of a slice that cannot be what the control plane made:
// it was examined, as one that differs from its sources was.
func notInOrder(err error) error { return &exitError{2, err} }

// sources reads all parts of a revision. A mesh file adds the catalogue once.
func (v *policyVerify) sources(ctx context.Context, names []string) (bundle.Content, error) {
	var files []bundle.File
	from := v.from
	for _, name := range names {
		src, err := from.open(ctx, name)
		if err != nil {
			return nil, err
		}
		files = append(files, src.Content...)
		from.mesh = ""
	}
	return bundle.NewContent(files)
}

func (r *verified) write(w io.Writer) error {
	var err error
	switch {
	case r.OK && r.Rebuilt == "":
		_, err = fmt.Fprintf(w, "slice of %s, revision %s: signed by the decision key, %d files\n", r.SPIFFEID, r.Revision, r.Files)
	case r.OK:
		_, err = fmt.Fprintf(w, "slice of %s, revision %s: %d files, each as the sources give it\n", r.SPIFFEID, r.Revision, r.Files)
		if err == nil && !r.Signed {
			_, err = fmt.Fprintln(w, "the sources were read as they are: no --verification-key was given")
		}
	default:
		for _, d := range r.Differences {
			if _, err = fmt.Fprintf(w, "%s: %s\n", terminalSafe(d.File), terminalSafe(d.What)); err != nil {
				return err
			}
		}
	}
	return err
}

// rebuildSlice does what the control plane does with sources.
func rebuildSlice(ctx context.Context, content bundle.Content, like *bundle.Slice) (*bundle.Slice, error) {
	cutter, err := bundle.NewCutter(content)
	if err != nil {
		return nil, err
	}
	revision := like.Revision
	revision.Digest = content.Digest()
	slice, err := cutter.Cut(bundle.SliceConfig{Revision: revision, Activated: like.Activated, SPIFFEID: like.SPIFFEID})
	if err != nil || like.Program == nil {
		return slice, err
	}
	slice.Program, err = compile.Slice(ctx, content, slice)
	return slice, err
}

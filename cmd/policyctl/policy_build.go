package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/atomicfile"
	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

type policyBuild struct {
	from               sourceFlags
	file, key          string
	service, workload  string
	revision           string
	wanted             int
	outside            []string
	signatures, packed []byte
}

func newPolicyBuildCmd(a *app) *cobra.Command {
	var b policyBuild
	cmd := &cobra.Command{
		Use:   "build SOURCE",
		Short: "Write a bundle that stock OPA decides with",
		Long: `Check a policy and write it as an OPA bundle with the root rule in it, so that
"opa run" decides as a sidecar would: ask it for data.writ.decision with
strict-builtin-errors. The bounds of data.writ.outside are not OPA's: what the
rules may ask by http.send is said there by its capabilities (allow_net), and
opa.runtime shows all of its environment. The data is one document, and tests are left out. With --service or
--spiffe-id the bundle holds what that workload needs, and no more.

` + sourceHelp,
		Example: `  policyctl policy build policy/ --out bundle.tar.gz --key publisher.pem
  policyctl policy build policy/ --out orders.tar.gz --service orders
  opa run --server --bundle bundle.tar.gz --verification-key publisher.pub.pem --signing-alg ES256`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			content, _, problems, err := b.from.check(cmd.Context(), args[0])
			if err == nil && len(problems) == 0 {
				err = b.write(content)
			}
			if err != nil {
				return fmt.Errorf("policy build: %w", err)
			}
			digest := content.Digest()
			result := struct {
				File     string           `json:"file,omitempty"`
				Files    int              `json:"files"`
				Bytes    int              `json:"bytes"`
				Signed   bool             `json:"signed"`
				Source   string           `json:"source_digest"`
				Outside  []string         `json:"outside,omitempty"`
				Problems []policy.Problem `json:"problems"`
			}{b.file, b.wanted, len(b.packed), b.signatures != nil, hex.EncodeToString(digest[:]), b.outside, problems}
			err = a.emit(result, func(w io.Writer) error {
				if len(problems) > 0 {
					return writeProblems(w, args[0], problems)
				}
				if _, err := fmt.Fprintf(w, "%s: %d files, %d bytes\n", b.file, b.wanted, len(b.packed)); err != nil || len(b.outside) == 0 {
					return err
				}
				_, err := fmt.Fprintf(w, "note: OPA does not know the bounds of data.writ.outside (%s): start it with capabilities that have allow_net\n", strings.Join(b.outside, ", "))
				return err
			})
			if err != nil {
				return err
			}
			return refused(problems)
		},
	}
	b.from.add(cmd)
	f := cmd.Flags()
	f.StringVar(&b.file, "out", "bundle.tar.gz", "where to write it")
	f.StringVar(&b.key, "key", "", "file with the private key (PEM, ECDSA P-256) to sign with; without it nothing is signed")
	f.StringVar(&b.service, "service", "", "only what this service of the catalogue needs")
	f.StringVar(&b.workload, "spiffe-id", "", "only what this workload needs")
	f.StringVar(&b.revision, "revision", "", "revision in the manifest (default the digest of the sources)")
	cmd.MarkFlagsMutuallyExclusive("service", "spiffe-id")
	_ = cmd.MarkFlagFilename("key", "pem")
	_ = cmd.MarkFlagFilename("out", "tar.gz")
	for _, name := range []string{"service", "spiffe-id", "revision"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

func (b *policyBuild) write(content bundle.Content) error {
	revision := b.revision
	if revision == "" {
		digest := content.Digest()
		revision = hex.EncodeToString(digest[:])
	}
	content, err := b.cut(content)
	if err != nil {
		return err
	}
	data, _ := content.Data()
	catalogue, _ := content.Catalogue(data)
	b.outside = catalogue.Outside.Builtins()
	if content, err = content.Standalone(revision); err != nil {
		return err
	}
	if b.key != "" {
		key, err := readPrivateKey(b.key)
		if err != nil {
			return err
		}
		if b.signatures, err = content.Sign(key, bundle.ScopeSources); err != nil {
			return err
		}
	}
	if b.packed, err = content.Archive(b.signatures); err != nil {
		return err
	}
	b.wanted = len(content)
	return atomicfile.Write(b.file, b.packed, 0o644)
}

// cut leaves what the workload needs, or everything when none is named.
func (b *policyBuild) cut(content bundle.Content) (bundle.Content, error) {
	if b.service == "" && b.workload == "" {
		return content, nil
	}
	cutter, err := bundle.NewCutter(content)
	if err != nil {
		return nil, err
	}
	workload := b.workload
	if b.service != "" {
		data, _ := content.Data()
		catalogue, _ := content.Catalogue(data)
		service, ok := catalogue.Services[b.service]
		if !ok {
			var names []string
			for name := range catalogue.Services {
				names = append(names, name)
			}
			slices.Sort(names)
			return nil, fmt.Errorf("service %q is not in the catalogue%s", b.service, nearmiss.Hint(b.service, names))
		}
		if len(service.SPIFFEIDs) != 1 {
			return nil, fmt.Errorf("service %s has %d SPIFFE IDs: name one with --spiffe-id", b.service, len(service.SPIFFEIDs))
		}
		workload = service.SPIFFEIDs[0]
	}
	id, err := spiffeid.FromString(workload)
	if err != nil {
		return nil, fmt.Errorf("--spiffe-id: %w", err)
	}
	if err := inCatalogue(content, id); err != nil {
		return nil, fmt.Errorf("--spiffe-id: %w", err)
	}
	slice, err := cutter.Cut(bundle.SliceConfig{SPIFFEID: id})
	if err != nil {
		return nil, err
	}
	return slice.Content, nil
}

// inCatalogue refuses an ID that no service has: its slice would be without
// rules, as that of a workload is that is not there.
func inCatalogue(content bundle.Content, id spiffeid.ID) error {
	data, _ := content.Data()
	catalogue, _ := content.Catalogue(data)
	var known []string
	for _, service := range catalogue.Services {
		known = append(known, service.SPIFFEIDs...)
	}
	if slices.Contains(known, id.String()) {
		return nil
	}
	return fmt.Errorf("no service of the catalogue has %s%s", id, nearmiss.Hint(id.String(), known))
}

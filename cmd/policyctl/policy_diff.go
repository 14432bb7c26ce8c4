package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyDiffCmd(a *app) *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "diff A [B]",
		Short: "Show what differs between two revisions, or a revision and a directory",
		Long: `Show the difference between two policies, file by file. A and B are numbers of
revisions or sources; without B, it is what is in force. A publisher's directory
is a part of what is in force: what other publishers have shows as missing.

` + sourceHelp,
		Example: `  policyctl policy diff 7
  policyctl policy diff 7 9
  policyctl policy diff 7 policy/`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			names := append(args, "in force")[:2]
			var sides [2][]*policyv1.SourceFile
			for i, name := range names {
				var err error
				if sides[i], err = a.side(cmd.Context(), &from, name, i >= len(args)); err != nil {
					return fmt.Errorf("policy diff: %w", err)
				}
			}
			result := struct {
				A    string `json:"a"`
				B    string `json:"b"`
				Diff string `json:"diff"`
			}{names[0], names[1], diffFiles(names[0], names[1], sides[0], sides[1])}
			return a.emit(result, func(w io.Writer) error { return writeText(w, result.Diff) })
		},
	}
	from.add(cmd)
	return cmd
}

// side reads one side of a comparison.
func (a *app) side(ctx context.Context, from *sourceFlags, name string, active bool) (files []*policyv1.SourceFile, err error) {
	number, notANumber := revisionNumber(name)
	if notANumber != nil && !active {
		src, err := from.open(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, f := range src.Content {
			files = append(files, &policyv1.SourceFile{Path: f.Path, Content: f.Content})
		}
		return files, nil
	}
	err = a.policyAdmin(func(c policyv1.AdminClient) error {
		if active {
			files, err = inForce(ctx, c)
			return err
		}
		resp, err := c.Show(ctx, &policyv1.ShowRequest{Number: number}, largeAnswer())
		files = resp.GetFiles()
		return err
	})
	return files, err
}

// inForce are the files in force, none before there are any.
func inForce(ctx context.Context, c policyv1.AdminClient) ([]*policyv1.SourceFile, error) {
	resp, err := c.Show(ctx, &policyv1.ShowRequest{}, largeAnswer())
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return resp.GetFiles(), err
}

// diffFiles is a unified diff of all files that differ, in the order of their
// paths.
func diffFiles(a, b string, before, after []*policyv1.SourceFile) string {
	type pair struct{ before, after []byte }
	files := map[string]*pair{}
	at := func(path string) *pair {
		if files[path] == nil {
			files[path] = &pair{}
		}
		return files[path]
	}
	for _, f := range before {
		at(f.GetPath()).before = f.GetContent()
	}
	for _, f := range after {
		at(f.GetPath()).after = f.GetContent()
	}
	var out strings.Builder
	for _, path := range slices.Sorted(maps.Keys(files)) {
		f := files[path]
		out.Write(diff.Diff(path+" ("+a+")", f.before, path+" ("+b+")", f.after))
	}
	return out.String()
}

// writeText writes what a control plane sent, made safe for a terminal.
func writeText(w io.Writer, text string) error {
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		for i := range fields {
			fields[i] = terminalSafe(fields[i])
		}
		if _, err := fmt.Fprintln(w, strings.Join(fields, "\t")); err != nil {
			return err
		}
	}
	return nil
}

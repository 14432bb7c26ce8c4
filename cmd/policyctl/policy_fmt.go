package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/atomicfile"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyFmtCmd(a *app) *cobra.Command {
	var f formatter
	cmd := &cobra.Command{
		Use:   "fmt [PATH…]",
		Short: "Format Rego",
		Long: `Give .rego files the form of "opa fmt". A path is a file or a directory, the
current one if none is given; - is standard input. Without a flag, one source
is written to standard output, and of several the names of those that are not
formatted. A file that does not parse is left alone, and ends the program with
exit code 2.`,
		Example: `  policyctl policy fmt -w policy/
  policyctl policy fmt --check policy/
  policyctl policy fmt - < orders.rego`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"rego"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"."}
			}
			return a.format(cmd.Context(), f, args)
		},
	}
	cmd.Flags().BoolVarP(&f.write, "write", "w", false, "write what changed back to its file")
	cmd.Flags().BoolVar(&f.check, "check", false, "only list what is not formatted, and end with exit code 2 if there is something")
	cmd.Flags().BoolVar(&f.diff, "diff", false, "show what would change")
	cmd.MarkFlagsMutuallyExclusive("write", "check")
	cmd.MarkFlagsMutuallyExclusive("write", "diff")
	return cmd
}

// formatter says what to do with what is formatted.
type formatter struct{ write, check, diff bool }

// formatResult is the JSON form of a run.
type formatResult struct {
	OK       bool             `json:"ok"`
	Files    int              `json:"files"`
	Changed  []string         `json:"changed"`
	Written  bool             `json:"written"`
	Diff     string           `json:"diff,omitempty"`
	Source   string           `json:"source,omitempty"`
	Problems []policy.Problem `json:"problems"`
}

func (a *app) format(ctx context.Context, f formatter, paths []string) error {
	files, err := regoFiles(paths)
	if err != nil {
		return err
	}
	result := formatResult{Changed: []string{}, Problems: []policy.Problem{}, Written: f.write, Files: len(files)}
	alone := len(paths) == 1 && len(files) == 1 && files[0] == paths[0]
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.formatFile(f, file, alone, &result); err != nil {
			return err
		}
	}
	result.OK = len(result.Problems) == 0 && (!f.check || len(result.Changed) == 0)
	err = a.emit(result, func(w io.Writer) error {
		switch {
		case len(result.Problems) > 0 && result.Source == "":
			if err := writeProblems(w, "", result.Problems); err != nil {
				return err
			}
		case result.Source != "":
			_, err := io.WriteString(w, result.Source)
			return err
		}
		if f.diff {
			_, err := io.WriteString(w, result.Diff)
			return err
		}
		for _, name := range result.Changed {
			if _, err := fmt.Fprintln(w, terminalSafe(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && !result.OK {
		return &exitError{code: 2}
	}
	return err
}

// formatFile formats one file; alone says that its text is the result where no
// flag asks for another.
func (a *app) formatFile(f formatter, name string, alone bool, result *formatResult) error {
	source, err := a.readSource(name)
	if err != nil {
		return err
	}
	out, err := opa.Format(bundle.File{Path: name, Content: source})
	var problems policy.Refused
	if errors.As(err, &problems) {
		result.Problems = append(result.Problems, problems...)
		return nil
	}
	if err != nil {
		return err
	}
	if alone && !f.write && !f.check && !f.diff {
		result.Source = string(out)
	}
	if bytes.Equal(source, out) {
		return nil
	}
	result.Changed = append(result.Changed, name)
	if f.diff {
		result.Diff += string(diff.Diff(name, source, name+" (formatted)", out))
	}
	if !f.write {
		return nil
	}
	if name == "-" {
		return errors.New("-w: standard input cannot be written to")
	}
	// Where a link leads is written, and the link stays.
	target, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(target)
	if err != nil {
		return err
	}
	return atomicfile.Write(target, out, info.Mode().Perm())
}

func (a *app) readSource(name string) ([]byte, error) {
	if name != "-" {
		return os.ReadFile(name)
	}
	source, err := io.ReadAll(io.LimitReader(a.stdin, bundle.MaxFileBytes))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return source, nil
}

// regoFiles are the files that paths name, and the .rego files below the
// directories among them; what is hidden there is left out, as in a policy.
func regoFiles(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		if path == "-" {
			if len(paths) > 1 {
				return nil, errors.New("-: standard input stands alone")
			}
			return []string{"-"}, nil
		}
		err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case e.IsDir() && name != path && strings.HasPrefix(e.Name(), "."):
				return filepath.SkipDir
			case !e.IsDir() && (name == path || strings.HasSuffix(name, ".rego")):
				files = append(files, name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyShowCmd(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "show [NUMBER]",
		Short: "Show the files of a revision",
		Long: `Show the files of a revision, by default of the one in force, or write them
into a directory.`,
		Example: `  policyctl policy show
  policyctl policy show 7 --dir policy-7`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &policyv1.ShowRequest{}
			if len(args) == 1 {
				number, err := revisionNumber(args[0])
				if err != nil {
					return err
				}
				req.Number = number
			}
			var resp *policyv1.ShowResponse
			err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Show(cmd.Context(), req, largeAnswer())
				return err
			})
			if err != nil {
				return fmt.Errorf("policy show: %w", err)
			}
			if out != "" {
				if err := writePolicy(out, resp.GetFiles()); err != nil {
					return fmt.Errorf("policy show: %w", err)
				}
			}
			return a.showPolicy(resp, out)
		},
	}
	cmd.Flags().StringVar(&out, "dir", "", "write the files into this directory, which must not exist or be empty")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

func revisionNumber(text string) (uint64, error) {
	number, err := strconv.ParseUint(text, 10, 63)
	if err != nil || number == 0 {
		return 0, fmt.Errorf("revision %q: want a number from \"policyctl policy list\"", text)
	}
	return number, nil
}

// writePolicy writes files below dir and nowhere else, whatever their paths.
func writePolicy(dir string, files []*policyv1.SourceFile) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty", dir)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range files {
		if err := root.MkdirAll(path.Dir(f.GetPath()), 0o777); err != nil {
			return err
		}
		if err := root.WriteFile(f.GetPath(), f.GetContent(), 0o666); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) showPolicy(resp *policyv1.ShowResponse, out string) error {
	type file struct {
		Path      string `json:"path"`
		Publisher string `json:"publisher,omitempty"`
		Content   string `json:"content,omitempty"`
	}
	result := struct {
		revisionInfo
		Files []file `json:"files"`
	}{revisionInfoFrom(resp.GetInfo()), []file{}}
	for _, f := range resp.GetFiles() {
		shown := file{Path: f.GetPath(), Publisher: f.GetPublisher()}
		if out == "" {
			shown.Content = string(f.GetContent())
		}
		result.Files = append(result.Files, shown)
	}
	return a.emit(result, func(w io.Writer) error {
		if err := writeRevisions(w, []revisionInfo{result.revisionInfo}); err != nil {
			return err
		}
		if err := result.madeBy.write(w); err != nil {
			return err
		}
		if out != "" {
			_, err := fmt.Fprintf(w, "%d files written to %s\n", len(result.Files), out)
			return err
		}
		for _, f := range resp.GetFiles() {
			fmt.Fprintf(w, "\n-- %s --\n", terminalSafe(f.GetPath()))
			if err := writeText(w, string(f.GetContent())); err != nil {
				return err
			}
		}
		return nil
	})
}

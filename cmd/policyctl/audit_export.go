package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/export"
)

func newAuditExportCmd(a *app) *cobra.Command {
	var (
		filter       auditFilter
		format, file string
	)
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the record for other tools, or as an archive that can be verified",
		Long: `Write events as JSON Lines or CSV, or the whole ledger with its signed heads as
a tar archive that "audit verify" checks without this control plane. What was
written, and what recorders say they lost, is told on standard error.`,
		Example: `  policyctl audit export --format csv --since 720h -f march.csv
  policyctl audit export --format archive -f record.tar`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filter.proto(time.Now())
			if err != nil {
				return err
			}
			write, err := a.exporter(cmd, format, f)
			if err != nil {
				return err
			}
			if file == "" || file == "-" {
				return write(a.stdout)
			}
			return toFile(file, write)
		},
	}
	filter.flags(cmd)
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl, csv or archive")
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write; standard output when left out")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"jsonl", "csv", "archive"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) exporter(cmd *cobra.Command, format string, f *auditv1.Filter) (func(io.Writer) error, error) {
	ctx := cmd.Context()
	switch format {
	case "jsonl":
		return func(w io.Writer) error { return a.export(ctx, f, export.NewJSONLines(w)) }, nil
	case "csv":
		return func(w io.Writer) error { return a.export(ctx, f, export.NewCSV(w)) }, nil
	case "archive":
		for _, flag := range []string{"since", "until", "source", "destination", "decision-id", "path-prefix", "outcome", "kind"} {
			if cmd.Flags().Changed(flag) {
				return nil, fmt.Errorf("--%s: an archive is the whole record", flag)
			}
		}
		return func(w io.Writer) error { return a.archive(ctx, w) }, nil
	}
	return nil, fmt.Errorf("--format %q: want jsonl, csv or archive", format)
}

func (a *app) export(ctx context.Context, f *auditv1.Filter, w export.Writer) error {
	err := a.query(ctx, &auditv1.QueryRequest{Filter: f}, w.Write)
	summary, closeErr := w.Close()
	fmt.Fprintln(a.stderr, summary)
	if err := errors.Join(err, closeErr); err != nil {
		return fmt.Errorf("audit export is not complete: %w", err)
	}
	return nil
}

func (a *app) archive(ctx context.Context, w io.Writer) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := auditv1.NewAdminClient(conn).Archive(ctx, &auditv1.ArchiveRequest{})
	if err != nil {
		return fmt.Errorf("audit export: %w", rpcError(err))
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("audit export is not complete: %w", rpcError(err))
		}
		if _, err := w.Write(chunk.GetData()); err != nil {
			return fmt.Errorf("audit export: %w", err)
		}
	}
}

// toFile lets the file appear when it is complete. Only its owner can read it.
func toFile(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	buf := bufio.NewWriter(f)
	err = write(buf)
	if err = errors.Join(err, buf.Flush(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), name)
}

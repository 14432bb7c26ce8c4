package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/export"
)

func newAuditQueryCmd(a *app) *cobra.Command {
	var (
		filter auditFilter
		limit  uint64
	)
	cmd := &cobra.Command{
		Use:   "query",
		Short: "Find events",
		Long: `Find events, oldest first. With --output json they are one array of objects in
the form of "audit export --format jsonl".`,
		Example: `  policyctl audit query --decision-id 5m7c3gyl2rqk4tq7bq4v3w6x2e
  policyctl audit query --since 24h --outcome deny --destination orders`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filter.proto(time.Now())
			if err != nil {
				return err
			}
			records := []export.Record{}
			err = a.query(cmd.Context(), &auditv1.QueryRequest{Filter: f, Limit: limit}, func(s *auditv1.StoredRecord) error {
				if a.output == "json" {
					records = append(records, export.FromStored(s))
					return nil
				}
				return writeEvent(a.stdout, s)
			})
			if err != nil {
				return fmt.Errorf("audit query: %w", err)
			}
			return a.emit(records, func(io.Writer) error { return nil })
		},
	}
	filter.flags(cmd)
	cmd.Flags().Uint64Var(&limit, "limit", 1000, "most events to show; 0 is all")
	return cmd
}

// query calls f with each record that the control plane finds.
func (a *app) query(ctx context.Context, req *auditv1.QueryRequest, f func(*auditv1.StoredRecord) error) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := auditv1.NewAdminClient(conn).Query(ctx, req)
	if err != nil {
		return rpcError(err)
	}
	for {
		s, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpcError(err)
		}
		if err := f(s); err != nil {
			return err
		}
	}
}

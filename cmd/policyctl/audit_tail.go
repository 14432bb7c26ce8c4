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

func newAuditTailCmd(a *app) *cobra.Command {
	var (
		filter   auditFilter
		follow   bool
		noFollow bool
		backlog  uint32
	)
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show events as they are stored",
		Long: `Show the newest events, and then each one as it becomes durable at the
collector, until interrupted. With --output json each event is one line of
JSON, in the form of "audit export --format jsonl".`,
		Example: `  policyctl audit tail --outcome deny
  policyctl audit tail --backlog 20 --no-follow --kind admin,policy`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filter.proto(time.Now())
			if err != nil {
				return err
			}
			return a.tail(cmd.Context(), &auditv1.TailRequest{Filter: f, Backlog: backlog, Once: noFollow || !follow})
		},
	}
	filter.flags(cmd)
	cmd.Flags().Uint32Var(&backlog, "backlog", 10, "events already stored to begin with")
	cmd.Flags().BoolVarP(&follow, "follow", "f", true, "wait for more")
	cmd.Flags().BoolVar(&noFollow, "no-follow", false, "end after the events already stored")
	return cmd
}

func (a *app) tail(ctx context.Context, req *auditv1.TailRequest) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := auditv1.NewAdminClient(conn).Tail(ctx, req)
	if err != nil {
		return fmt.Errorf("audit tail: %w", rpcError(err))
	}
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			// Ctrl-C is how a tail ends.
			return nil
		case err != nil:
			return fmt.Errorf("audit tail: %w", rpcError(err))
		case resp.GetRecord() == nil:
			continue
		}
		if a.output != "json" {
			if err := writeEvent(a.stdout, resp.GetRecord()); err != nil {
				return err
			}
			continue
		}
		w := export.NewJSONLines(a.stdout)
		if err := w.Write(resp.GetRecord()); err != nil {
			return err
		}
		if _, err := w.Close(); err != nil {
			return err
		}
	}
}

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/ledger"
)

func newAuditVerifyCmd(a *app) *cobra.Command {
	var key, expect string
	cmd := &cobra.Command{
		Use:   "verify [DIR|TAR]",
		Short: "Verify a ledger or an archive of it, offline",
		Long: `Verify a ledger's directory (audit in the data directory, unless another is
named), or an archive made by "audit export", against the verifier key. A changed, removed, added or moved record, a record cut off at the
end, and a history written anew are each named by stream, epoch, sequence and
time. Nothing but the key is trusted: take it from elsewhere than the evidence.

Evidence tells nothing of what came after its last signed head. --expect-head
names a file with heads kept elsewhere; evidence that does not reach the newest
of them has been cut off. Exit code 2 means that the evidence does not verify.`,
		Example: `  policyctl audit verify record.tar --key audit.vkey
  policyctl audit verify /var/lib/writ/audit --key audit.vkey --expect-head heads.txt`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				key = filepath.Join(a.dataDir, "public", "audit.vkey")
			}
			keys, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			cfg := ledger.VerifyConfig{Path: filepath.Join(a.dataDir, "audit"), Keys: string(keys)}
			if len(args) > 0 {
				cfg.Path = args[0]
			}
			if expect != "" {
				if cfg.ExpectHeads, err = os.ReadFile(expect); err != nil {
					return fmt.Errorf("--expect-head: %w", err)
				}
			}
			report, err := ledger.Verify(cmd.Context(), cfg)
			if err != nil {
				return fmt.Errorf("audit verify: %w", err)
			}
			if err := a.emit(report, func(w io.Writer) error { return writeReport(w, report) }); err != nil {
				return err
			}
			if !report.OK {
				return &exitError{code: 2}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file with the verifier key (default public/audit.vkey in the data directory)")
	cmd.Flags().StringVar(&expect, "expect-head", "", "file with signed heads kept elsewhere")
	return cmd
}

func writeReport(w io.Writer, r *ledger.Report) error {
	verdict := "verified"
	if !r.OK {
		verdict = "DOES NOT VERIFY"
	}
	fmt.Fprintf(w, "%s: %s of %s, %s\n", verdict, audit.Count(r.Events, "event", "events"),
		audit.Count(uint64(len(r.Streams)), "stream", "streams"), audit.Count(uint64(r.Heads), "signed head", "signed heads"))
	if h := r.LastHead; h != nil {
		fmt.Fprintf(w, "complete up to %s (%s)\n", h.Time.Format(time.RFC3339Nano), audit.Count(h.Size, "entry", "entries"))
	}
	if r.Erased > 0 {
		fmt.Fprintf(w, "erased, with only the hash left: %s\n", audit.Count(r.Erased, "event", "events"))
	}
	if r.Uncovered > 0 && r.Live {
		fmt.Fprintf(w, "%s newer than the last head; the ledger is in use\n", audit.Count(r.Uncovered, "entry is", "entries are"))
	}
	for _, p := range r.Problems {
		for line := range strings.Lines(p.String()) {
			fmt.Fprintln(w, terminalSafe(strings.TrimSuffix(line, "\n")))
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", terminalSafe(n))
	}
	return nil
}

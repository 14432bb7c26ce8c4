package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/backup"
)

func newRestoreCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup into a new data directory",
		Long: `Verify a backup and put it into the data directory, which must be empty or not
there: all of it, or nothing. writd does not run meanwhile, and is started on
the directory afterwards, as the user who restored.

At its first start writd raises the epoch of policy, so that sidecars take what
the backup holds though they run something newer; the act is signed, on record,
and raises an alarm. What happened after the backup is lost: entries, policy and
agents. Events that sidecars had sent since are missing in the ledger, which
says so.`,
		Example: `  policyctl restore writ-2026-11-20.tar --data-dir /var/lib/writ
  writd --config /etc/writ/writd.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			m, err := backup.Restore(args[0], a.dataDir, time.Now())
			if err != nil {
				return fmt.Errorf("restore: %w", err)
			}
			result := struct {
				DataDir string `json:"data_dir"`
				backupResult
			}{a.dataDir, newBackupResult(args[0], m)}
			return a.emit(result, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: trust domain %s as of %s, %d files, %s\n", a.dataDir, m.TrustDomain,
					m.Created.Format(time.RFC3339), len(m.Files), keysText(m.Keys))
				if err == nil && !m.Keys {
					_, err = fmt.Fprintln(w, "put the private keys into its directory keys (mode 0700) before writd is started, or it makes new ones that nobody trusts")
				}
				return err
			})
		},
	}
	return cmd
}

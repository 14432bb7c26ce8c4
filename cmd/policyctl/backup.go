package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/writ-dev/writ/internal/atomicfile"
	"github.com/writ-dev/writ/internal/backup"
	"github.com/writ-dev/writ/policy/policyv1"
)

func newBackupCmd(a *app) *cobra.Command {
	var (
		out         string
		withoutKeys bool
	)
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Write a backup of the control plane while it runs",
		Long: `Write everything that a control plane must not lose into one tar: a consistent
copy of the database, the private keys, the public files and the audit ledger,
and last a manifest with the SHA-256 of each. The file is verified before it
gets its name.

It holds the private keys of the trust domain unless --without-keys is given,
and has mode 0600: whoever reads it can issue any identity. That it was made is
on record.`,
		Example: `  policyctl backup --out writ-2026-11-20.tar
  policyctl backup --out writ.tar --without-keys`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := a.backup(cmd.Context(), out, withoutKeys)
			if err != nil {
				return fmt.Errorf("backup: %w", rpcError(err))
			}
			return a.emit(newBackupResult(out, m), func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %d files, %d bytes, %s\n", out, len(m.Files), m.Bytes(), keysText(m.Keys))
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file to write, which must not exist")
	f.BoolVar(&withoutKeys, "without-keys", false, "leave the private keys out")
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "tar")
	return cmd
}

// backupResult is the JSON form of a backup.
type backupResult struct {
	File        string    `json:"file"`
	TrustDomain string    `json:"trust_domain"`
	Created     time.Time `json:"created"`
	Files       int       `json:"files"`
	Bytes       int64     `json:"bytes"`
	Keys        bool      `json:"keys"`
}

func newBackupResult(file string, m *backup.Manifest) backupResult {
	return backupResult{file, m.TrustDomain, m.Created, len(m.Files), m.Bytes(), m.Keys}
}

func keysText(with bool) string {
	if with {
		return "with the private keys"
	}
	return "without the private keys"
}

func (a *app) backup(ctx context.Context, out string, withoutKeys bool) (m *backup.Manifest, err error) {
	if _, err := os.Lstat(out); err == nil {
		return nil, fmt.Errorf("%s is there already", out)
	}
	conn, err := a.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	tmp, err := os.CreateTemp(filepath.Dir(out), ".backup-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := policyv1.NewBackupClient(conn).Create(ctx, &policyv1.BackupRequest{WithoutKeys: withoutKeys})
	if err != nil {
		return nil, err
	}
	progress := a.progress()
	var have, about uint64
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, rpcError(err) // here, because it is joined with others above
		}
		about = max(about, chunk.GetAbout())
		if _, err := tmp.Write(chunk.GetData()); err != nil {
			return nil, err
		}
		have += uint64(len(chunk.GetData()))
		progress(have, about)
	}
	progress(0, 0)
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if m, err = backup.Verify(tmp); err != nil {
		return nil, err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	// A link fails where there is a file by now; a rename would replace it.
	if err := os.Link(tmp.Name(), out); err != nil {
		return nil, err
	}
	return m, errors.Join(os.Remove(tmp.Name()), atomicfile.SyncDir(filepath.Dir(out)))
}

// progress tells a person at a terminal how far it is; 0 ends the line.
func (a *app) progress() func(have, about uint64) {
	f, ok := a.stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || a.output == "json" {
		return func(uint64, uint64) {}
	}
	const mebi = 1 << 20
	shown := uint64(0)
	return func(have, about uint64) {
		switch {
		case have == 0 && shown > 0:
			fmt.Fprintln(f)
		case have/mebi > shown:
			shown = have / mebi
			fmt.Fprintf(f, "\r%d of about %d MiB", shown, max(about, have)/mebi)
		}
	}
}

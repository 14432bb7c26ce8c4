package ledger

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Archive writes the verifier key, the heads and the segments to w as a tar
// file. It signs a head first, so that a head covers all of it.
func (l *Ledger) Archive(ctx context.Context, w io.Writer) error {
	c, err := l.signHead()
	if err != nil {
		return fmt.Errorf("archive ledger: %w", err)
	}
	key, err := os.Stat(filepath.Join(l.cfg.Dir, keyFile))
	if err != nil {
		return fmt.Errorf("archive ledger: %w", err)
	}
	files := append([]segmentRef{
		{name: filepath.Join(l.cfg.Dir, keyFile), size: key.Size()},
		{name: filepath.Join(l.cfg.Dir, headsFile), size: c.headBytes},
	}, c.segments...)
	tw := tar.NewWriter(w)
	for _, ref := range files {
		if err := addFile(ctx, tw, ref, c.at); err != nil {
			return fmt.Errorf("archive ledger: %w", err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("archive ledger: %w", err)
	}
	return nil
}

func addFile(ctx context.Context, tw *tar.Writer, ref segmentRef, at time.Time) error {
	f, err := os.Open(ref.name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := tw.WriteHeader(&tar.Header{Name: filepath.Base(ref.name), Mode: 0o600, Size: ref.size, ModTime: at}); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for left := ref.size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf[:min(int64(len(buf)), left)])
		if n == 0 && err != nil {
			return fmt.Errorf("%s: %w", ref.name, err)
		}
		if _, err := tw.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/backup"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/version"
	"github.com/writ-dev/writ/policy/policyv1"
)

// backupChunk is the size of a message, bytes.
const backupChunk = 256 << 10

// maxKeyFile bounds a file of keys or public, bytes.
const maxKeyFile = 1 << 20

// backupService serves policyv1.Backup.
type backupService struct {
	policyv1.UnimplementedBackupServer
	w *writd
}

// Create implements policyv1.BackupServer. That a backup was made is on record,
// and in the backup, since it has keys in it.
func (s *backupService) Create(req *policyv1.BackupRequest, stream grpc.ServerStreamingServer[policyv1.BackupChunk]) error {
	w, ctx := s.w, stream.Context()
	if sqldb.Shared(w.db) {
		return status.Errorf(codes.FailedPrecondition, "backup: the database is PostgreSQL (%s): back it up with pg_dump, and %s (keys, ledger) with what copies your files", sqldb.Name(w.db), w.cfg.DataDir)
	}
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "backed up", Actor: knownActor(ctx), Object: "control plane", ObjectID: w.td.Name(),
		Details: [][2]string{{"keys", fmt.Sprint(!req.WithoutKeys)}},
	}
	if err := w.emit(ctx, act); err != nil {
		return status.Errorf(codes.Internal, "backup: cannot be put on record: %v", err)
	}
	out := &chunkWriter{stream: stream}
	buffered := bufio.NewWriterSize(out, backupChunk)
	if err := w.backup(ctx, buffered, !req.WithoutKeys, &out.about); err != nil {
		return status.Errorf(codes.Internal, "backup: %v", err)
	}
	if err := buffered.Flush(); err != nil {
		return status.Errorf(codes.Internal, "backup: %v", err)
	}
	return nil
}

// chunkWriter sends what is written. The first message says about how much
// there will be.
type chunkWriter struct {
	stream grpc.ServerStreamingServer[policyv1.BackupChunk]
	about  uint64
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	// The message may be looked at after Send, the buffer is written again.
	err := c.stream.Send(&policyv1.BackupChunk{Data: bytes.Clone(p), About: c.about})
	c.about = 0
	return len(p), err
}

// backup writes everything that must survive. What refers to something comes
// before that: the database before the record, in which everything is that the
// database holds; and the keys before and after the database, which names them.
func (w *writd) backup(ctx context.Context, to io.Writer, withKeys bool, about *uint64) error {
	keys := map[string][]byte{}
	collect := func() error {
		if !withKeys {
			return nil
		}
		found, err := readFiles(w.path("keys"))
		maps.Copy(keys, found)
		return err
	}
	if err := collect(); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(w.cfg.DataDir, backupPrefix) // mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	database := filepath.Join(tmp, "writ.db")
	if _, err := w.db.ExecContext(ctx, `VACUUM INTO ?`, database); err != nil {
		return fmt.Errorf("copy of the database: %w", err)
	}
	if err := collect(); err != nil {
		return err
	}
	public, err := readFiles(w.path("public"))
	if err != nil {
		return err
	}
	out := backup.NewWriter(to, backup.Manifest{TrustDomain: w.td.Name(), Writ: version.String(), Created: time.Now().UTC(), Keys: withKeys})
	*about = w.backupSize(database)
	if err := addFile(out, "writ.db", database); err != nil {
		return err
	}
	for _, dir := range []struct {
		name   string
		files  map[string][]byte
		secret bool
	}{{"keys", keys, true}, {"public", public, false}} {
		for _, name := range slices.Sorted(maps.Keys(dir.files)) {
			data := dir.files[name]
			if err := out.Add(dir.name+"/"+name, int64(len(data)), dir.secret, bytes.NewReader(data)); err != nil {
				return err
			}
		}
	}
	if w.record.ledger != nil {
		if err := w.addLedger(ctx, out); err != nil {
			return err
		}
	}
	return out.Close()
}

// backupPrefix begins the name of a directory with a copy of the database.
const backupPrefix = ".backup-"

// dropUnfinishedBackups removes what a crash during a backup left.
func (w *writd) dropUnfinishedBackups() {
	left, _ := filepath.Glob(w.path(backupPrefix + "*"))
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			w.log.Warn("an unfinished backup is still there", "dir", dir, "error", err)
		}
	}
}

func (w *writd) backupSize(database string) uint64 {
	var about uint64
	if info, err := os.Stat(database); err == nil {
		about = uint64(info.Size())
	}
	if s := w.record.status(); s != nil {
		about += s.Bytes
	}
	return about
}

func addFile(out *backup.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return out.Add(name, info.Size(), true, f)
}

// addLedger adds the files of the ledger's own archive, which ends with a
// signed head.
func (w *writd) addLedger(ctx context.Context, out *backup.Writer) error {
	r, archive := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := w.record.ledger.Archive(ctx, archive)
		archive.CloseWithError(err)
		written <- err
	}()
	err := func() error {
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := out.Add("audit/"+h.Name, h.Size, true, tr); err != nil {
				return err
			}
		}
	}()
	// What comes after the end of a tar, or after an error, is nobody's.
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(err)
	return errors.Join(err, <-written)
}

// readFiles reads the small files of a directory.
func readFiles(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Retired between the two.
		}
		if err != nil {
			return nil, err
		}
		if len(data) > maxKeyFile {
			return nil, fmt.Errorf("%s: larger than %d bytes", e.Name(), maxKeyFile)
		}
		files[e.Name()] = data
	}
	return files, nil
}

// restored ends what "policyctl restore" began: what is in force is put under a
// higher epoch, so that sidecars take it though they run something newer.
func (w *writd) restored(ctx context.Context) error {
	mark, err := backup.ReadMark(w.cfg.DataDir)
	if err != nil || mark == nil {
		return err
	}
	reason := fmt.Sprintf("restored %s from the backup of %s", mark.Restored.Format(time.RFC3339), mark.Created.Format(time.RFC3339))
	raised, err := w.decision.Restored(actingAs(ctx, "restore"), reason)
	if err != nil {
		// Not a reason to stand still: status shows who runs something newer,
		// and a push or policyctl policy raise-epoch mends it.
		w.log.Error("after a restore", "epoch_raised", raised, "error", err)
	}
	if !raised {
		return nil // The mark stays for the next start.
	}
	return backup.RemoveMark(w.cfg.DataDir)
}

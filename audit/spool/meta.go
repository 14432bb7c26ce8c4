package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/internal/atomicfile"
)

const (
	metaFile = "meta.json"
	lockFile = "lock"
)

// meta is the identity of a spool. It is written when something of it changes,
// never while recording.
type meta struct {
	Version  int    `json:"version"`
	Stream   string `json:"stream"`
	Instance string `json:"instance"`
	Epoch    uint32 `json:"epoch"`
	// Boot is the machine's boot in which the spool was last opened.
	Boot string `json:"boot"`
	// Clean says that the spool was synced and closed.
	Clean bool `json:"clean"`
}

// readMeta returns nil when there is none.
func readMeta(dir string) (*meta, error) {
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	return parseMeta(b)
}

func parseMeta(b []byte) (*meta, error) {
	var m meta
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", errDamaged, metaFile, err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("%s: version %d, want 1", metaFile, m.Version)
	}
	u, err := uuid.Parse(m.Instance)
	if err != nil || u.String() != m.Instance || m.Epoch == 0 || m.Stream == "" {
		return nil, fmt.Errorf("%w: %s", errDamaged, metaFile)
	}
	return &m, nil
}

// write replaces the file and makes that durable.
func (m *meta) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("write spool: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, metaFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write spool: %w", err)
	}
	return nil
}

// lockDir takes the directory for this process; the lock ends with it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock spool: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("spool %s is in use by another process: %w", dir, err)
	}
	return f, nil
}

// bootID names this boot of the machine; empty where it cannot be known, and
// then every start counts as one of the same boot.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

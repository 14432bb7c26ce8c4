package follow

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/internal/atomicfile"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// keptSlice holds the last verified slice as it came, signature included, and
// keptSources the publishers' sources where those are trusted. The modification
// time is that of the last contact.
const (
	keptSlice   = "slice.tar.gz"
	keptSources = "sources.tar"
)

func (f *Follower) keptFile() string {
	name := keptSlice
	if f.cfg.Publishers != nil {
		name = keptSources
	}
	return filepath.Join(f.cfg.Dir, name)
}

// load puts the kept slice in force, verified like one from the network.
func (f *Follower) load() error {
	// A crash while writing leaves these.
	leftovers, _ := filepath.Glob(f.keptFile() + ".*")
	for _, name := range leftovers {
		_ = os.Remove(name)
	}
	path := f.keptFile()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Size() > bundle.MaxArchiveBytes {
		return fmt.Errorf("%s: larger than %d bytes", path, bundle.MaxArchiveBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	slice, err := f.open(data)
	if err != nil {
		return err
	}
	snapshot, err := f.prepare(slice)
	if err != nil {
		return err
	}
	f.kept = slice.Revision
	// A clock that was set back must not make the policy look fresh.
	f.heard(earlier(info.ModTime(), f.cfg.Clock()))
	f.activate(snapshot)
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// contact notes that the control plane was heard.
func (f *Follower) contact() {
	now := f.cfg.Clock()
	f.heard(now)
	if !f.kept.IsZero() {
		// For the next start only; there the worst is a policy that looks older.
		_ = os.Chtimes(f.keptFile(), now, now)
	}
}

func (f *Follower) heard(at time.Time) {
	f.mu.Lock()
	f.lastContact = at
	f.mu.Unlock()
	if f.cfg.Contacted != nil {
		f.cfg.Contacted(at)
	}
}

// keep writes the slice so that a crash leaves the old one or the new one.
func (f *Follower) keep(revision policy.Revision, data []byte) {
	if err := f.write(data); err != nil {
		f.cfg.Log.Error("policy slice cannot be kept: a restart without the control plane would start from an older one or none",
			"revision", revision.String(), "error", err)
		return
	}
	f.kept = revision
}

func (f *Follower) write(data []byte) error {
	if err := os.MkdirAll(f.cfg.Dir, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(f.keptFile(), data, 0o600)
}

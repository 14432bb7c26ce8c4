// Package unix attests workloads by what the kernel says of the process at the
// other end of a Unix socket.
//
// Selectors:
//
//	unix:uid:1000              effective user id when it connected
//	unix:user:alice            its name
//	unix:gid:1000              effective group id, and each supplementary group
//	unix:group:www-data        their names
//	unix:path:/usr/bin/nginx   the program it runs
//	unix:sha256:9f86d08…       SHA-256 of the program's file, in lower-case hex
//
// A supplementary group counts like the effective one, because whoever is in a
// group can make a set-group-ID program and be in it effectively. The selectors
// supplementary_gid and supplementary_group that SPIRE knows are given as well.
//
// Processes of one user are not isolated from each other: they may trace each
// other, so path and sha256 tell programs of one user apart only as far as none
// of them is hostile.
package unix

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"sync"

	"github.com/writ-dev/writ/internal/peercred"
)

// Type is the first part of every selector of this package.
const Type = "unix"

// DefaultMaxExecutable is the size in bytes up to which programs are hashed.
const DefaultMaxExecutable = 512 << 20

// Config is how workloads are attested.
type Config struct {
	// MaxExecutable is the size in bytes of the largest program that is hashed;
	// a larger one gets no sha256 selector. Zero is DefaultMaxExecutable.
	MaxExecutable int64
	Log           *slog.Logger
}

// Attestor finds the selectors of processes.
type Attestor struct {
	max int64
	log *slog.Logger

	// hashing limits how many programs are read at once: it costs CPU that the
	// node has other uses for.
	hashing chan struct{}
	mu      sync.Mutex
	hashes  map[fileVersion]string
}

// New returns an Attestor.
func New(c Config) *Attestor {
	if c.MaxExecutable == 0 {
		c.MaxExecutable = DefaultMaxExecutable
	}
	return &Attestor{max: c.MaxExecutable, log: c.Log, hashing: make(chan struct{}, 1), hashes: map[fileVersion]string{}}
}

// Attest returns the selectors of the caller. asked tells whether any entry has
// a selector of a kind (as in "unix:sha256"): those that cost something and
// that nobody asks for are left out.
//
// What cannot be found out is left out too, so that it matches nothing. An
// error means that the process is not, or no longer, the one that connected.
func (a *Attestor) Attest(ctx context.Context, p peercred.Peer, asked func(kind string) bool) ([]string, error) {
	s := ids(p)
	if asked(Type+":user") || asked(Type+":group") || asked(Type+":supplementary_group") {
		s = append(s, names(p)...)
	}
	wantPath, wantHash := asked(Type+":path"), asked(Type+":sha256")
	if wantPath || wantHash {
		exe, err := openExecutable(p.PID)
		if err != nil {
			a.log.WarnContext(ctx, "cannot see the program of a caller: it gets no path and no sha256", "pid", p.PID, "uid", p.UID, "error", err)
		} else {
			defer exe.Close()
			if wantPath {
				s = append(s, a.path(ctx, p, exe)...)
			}
			if wantHash {
				s = append(s, a.sha256(ctx, p, exe)...)
			}
		}
	}
	if err := confirm(p); err != nil {
		return nil, fmt.Errorf("attest process %d: %w", p.PID, err)
	}
	return s, nil
}

// confirm makes sure that what was read belonged to the caller, and that the
// caller did not run a set-user-ID program meanwhile: that program would lend
// its path to the caller's connection. The order matters: ids first, then
// whether the process still lives.
func confirm(p peercred.Peer) error {
	uid, gid, err := p.Effective()
	if alive := p.Alive(); alive != nil {
		return alive
	}
	if err != nil {
		return err
	}
	if uid != p.UID || gid != p.GID {
		return fmt.Errorf("it connected as uid %d gid %d and is now uid %d gid %d: connect again", p.UID, p.GID, uid, gid)
	}
	return nil
}

func ids(p peercred.Peer) []string {
	s := []string{selector("uid", id(p.UID)), selector("gid", id(p.GID))}
	for _, g := range p.Groups {
		if g != p.GID {
			s = append(s, selector("gid", id(g)))
		}
		s = append(s, selector("supplementary_gid", id(g)))
	}
	return s
}

func names(p peercred.Peer) []string {
	var s []string
	if u, err := user.LookupId(id(p.UID)); err == nil {
		s = append(s, selector("user", u.Username))
	}
	if g, err := user.LookupGroupId(id(p.GID)); err == nil {
		s = append(s, selector("group", g.Name))
	}
	for _, gid := range p.Groups {
		g, err := user.LookupGroupId(id(gid))
		if err != nil {
			continue
		}
		if gid != p.GID {
			s = append(s, selector("group", g.Name))
		}
		s = append(s, selector("supplementary_group", g.Name))
	}
	return s
}

func id(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func selector(kind, value string) string { return Type + ":" + kind + ":" + value }

func (a *Attestor) path(ctx context.Context, p peercred.Peer, exe *executable) []string {
	path, err := exe.path(p.PID)
	if err != nil {
		a.log.WarnContext(ctx, "the program of a caller has no path that means anything here", "pid", p.PID, "uid", p.UID, "error", err)
		return nil
	}
	return []string{selector("path", path)}
}

func (a *Attestor) sha256(ctx context.Context, p peercred.Peer, exe *executable) []string {
	sum, err := a.hash(ctx, exe)
	if err != nil {
		a.log.WarnContext(ctx, "cannot hash the program of a caller", "pid", p.PID, "uid", p.UID, "error", err)
		return nil
	}
	return []string{selector("sha256", sum)}
}

// maxHashes is how many programs' hashes are remembered.
const maxHashes = 256

func (a *Attestor) hash(ctx context.Context, exe *executable) (string, error) {
	if exe.version.size > a.max {
		return "", fmt.Errorf("it has %d bytes, more than the limit of %d", exe.version.size, a.max)
	}
	select {
	case a.hashing <- struct{}{}:
		defer func() { <-a.hashing }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	a.mu.Lock()
	sum, ok := a.hashes[exe.version]
	a.mu.Unlock()
	if ok {
		return sum, nil
	}
	f, err := exe.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum, err = sumOf(ctx, f, a.max)
	if err != nil {
		return "", err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.hashes) >= maxHashes {
		clear(a.hashes)
	}
	a.hashes[exe.version] = sum
	return sum, nil
}

func sumOf(ctx context.Context, f *os.File, limit int64) (string, error) {
	h := sha256.New()
	for left := limit; ; {
		n, err := io.CopyN(h, f, 1<<20)
		left -= n
		switch {
		case left < 0:
			return "", fmt.Errorf("it grew beyond the limit of %d bytes", limit)
		case errors.Is(err, io.EOF):
			return hex.EncodeToString(h.Sum(nil)), nil
		case err != nil:
			return "", err
		case ctx.Err() != nil:
			return "", ctx.Err()
		}
	}
}

package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/internal/atomicfile"
)

// Files of the data directory.
const (
	svidFile   = "agent.pem"  // private key and X509-SVID in one, so that they always fit
	bundleFile = "bundle.pem" // trust bundle as last received
	usedFile   = "token-used" // SHA-256 of the join tokens that were presented
	// revokedFile is what is revoked, an Update of identity/revocationv1.
	revokedFile = "revocations"
	lockFile    = "agent.lock"
)

// keep is what outlives the process, so that a restart needs no join token.
type keep struct {
	dir string
	// lock keeps a second agent out for as long as it is open.
	lock *os.File
}

func openKeep(dir string) (*keep, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != os.Geteuid() {
		return nil, fmt.Errorf("%s belongs to uid %d, not to this process (uid %d)", dir, uid, os.Geteuid())
	}
	switch mode := info.Mode().Perm(); {
	case mode&0o022 != 0:
		return nil, fmt.Errorf("others can write %s (mode %04o): chmod 700", dir, mode)
	case mode&0o077 != 0:
		// Nobody could have put anything there; what is there is for this user.
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("mode %04o of %s lets others in: %w", mode, dir, err)
		}
	}
	return &keep{dir: dir}, nil
}

// hold takes the lock that keeps a second agent out: two would take the node's
// identity from each other. It is taken when the agent runs, and not before.
func (k *keep) hold() error {
	lock, err := os.OpenFile(filepath.Join(k.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return fmt.Errorf("data directory %s is in use by another writ-agent: give each a data_dir of its own", k.dir)
	}
	k.lock = lock
	return nil
}

func (k *keep) release() { k.lock.Close() }

// damagedError is a file that is not what it was written as. What it held is only a
// way to go on without attesting anew.
type damagedError struct {
	path string
	err  error
}

func (e *damagedError) Error() string {
	return fmt.Sprintf("%s is damaged (%v): it is not used, and replaced when the node has been attested", e.path, e.err)
}
func (e *damagedError) Unwrap() error { return e.err }

// svid returns the kept SVID, or nil where there is none.
func (k *keep) svid() (*x509svid.SVID, error) {
	path := filepath.Join(k.dir, svidFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("mode %04o of %s lets others read the agent's key: chmod 600 it, or remove it to attest anew if someone may have read it", mode, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	svid, err := parseSVIDFile(data)
	if err != nil {
		return nil, &damagedError{path, err}
	}
	return svid, nil
}

// parseSVIDFile reads a private key and certificates, PEM, in any order.
func parseSVIDFile(data []byte) (*x509svid.SVID, error) {
	var certs, key []byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "PRIVATE KEY" {
			key = block.Bytes
		} else if block.Type == "CERTIFICATE" {
			certs = append(certs, block.Bytes...)
		}
	}
	return x509svid.ParseRaw(certs, key)
}

func (k *keep) saveSVID(svid *x509svid.SVID) error {
	certs, key, err := svid.Marshal()
	if err != nil {
		return err
	}
	return k.write(svidFile, append(key, certs...))
}

// bundle returns the kept trust bundle, or nil where there is none.
func (k *keep) bundle(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	path := filepath.Join(k.dir, bundleFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := x509bundle.Parse(td, data)
	if err != nil {
		return nil, &damagedError{path, err}
	}
	return b, nil
}

func (k *keep) saveBundle(b *x509bundle.Bundle) error {
	data, err := b.Marshal()
	if err != nil {
		return err
	}
	return k.write(bundleFile, data)
}

// tokenUsed tells whether this agent presented the token before. To present it
// again would raise an alarm at the issuer if it was accepted.
func (k *keep) tokenUsed(token string) (bool, error) {
	data, err := os.ReadFile(filepath.Join(k.dir, usedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.Contains(string(data), hashToken(token)), err
}

// maxUsed is how many used tokens are remembered.
const maxUsed = 32

func (k *keep) markTokenUsed(token string) error {
	data, err := os.ReadFile(filepath.Join(k.dir, usedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lines := strings.Fields(string(data))
	lines = append(lines[max(0, len(lines)-maxUsed+1):], hashToken(token))
	return k.write(usedFile, []byte(strings.Join(lines, "\n")+"\n"))
}

// unmarkToken takes back that the token was presented.
func (k *keep) unmarkToken(token string) error {
	data, err := os.ReadFile(filepath.Join(k.dir, usedFile))
	if err != nil {
		return err
	}
	left := strings.ReplaceAll(string(data), hashToken(token)+"\n", "")
	return k.write(usedFile, []byte(left))
}

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func (k *keep) write(name string, data []byte) error {
	return atomicfile.Write(filepath.Join(k.dir, name), data, 0o600)
}

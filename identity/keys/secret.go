package keys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/writ-dev/writ/internal/atomicfile"
)

// SecretSize is the size of a Secret, bytes.
const SecretSize = 32

// Secret is a key that is the same for all who have it, to authenticate what they
// write.
type Secret [SecretSize]byte

// NewSecret makes a random one.
func NewSecret() (s Secret) {
	_, _ = rand.Read(s[:]) // it never fails
	return s
}

// String keeps the secret out of logs.
func (Secret) String() string { return "[secret]" }

// LoadSecret reads a secret from a file that holds it in hexadecimal digits, as
// "openssl rand -hex 32" makes one. It refuses what Disk refuses of a key; the
// error is ErrNotFound where there is no file.
func LoadSecret(file string) (s Secret, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("load %s: %w", file, ErrNotFound)
	} else if err != nil {
		return s, fmt.Errorf("load key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return s, fmt.Errorf("load %s: %w", file, err)
	case !info.Mode().IsRegular():
		return s, fmt.Errorf("load %s: not a file", file)
	}
	if err := private(info); err != nil {
		return s, fmt.Errorf("load %s: %w", file, err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return s, fmt.Errorf("load %s: %w", file, err)
	}
	// Errors never quote the content.
	digits := strings.TrimSpace(string(text))
	if len(digits) != hex.EncodedLen(SecretSize) {
		return s, fmt.Errorf("load %s: want %d hexadecimal digits", file, hex.EncodedLen(SecretSize))
	}
	if _, err := hex.Decode(s[:], []byte(digits)); err != nil {
		return s, fmt.Errorf("load %s: want hexadecimal digits alone", file)
	}
	return s, nil
}

// SaveSecret writes a secret to a file that is not there yet, mode 0600. It is
// durable when SaveSecret returns; the error is ErrExists where the name is taken.
func SaveSecret(file string, s Secret) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("save %s: %w", file, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(hex.EncodeToString(s[:]) + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("save %s: %w", file, err)
	}
	if err := os.Link(tmp.Name(), file); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("save %s: %w", file, ErrExists)
	} else if err != nil {
		return fmt.Errorf("save key: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(file))
}

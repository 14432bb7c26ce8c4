package keys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
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
	text, err := readPrivate(file, 0)
	if errors.Is(err, ErrNotFound) {
		return s, fmt.Errorf("load %s: %w", file, err)
	} else if err != nil {
		return s, fmt.Errorf("load key: %w", err)
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
func SaveSecret(file string, s Secret) error {
	if err := writeNew(file, []byte(hex.EncodeToString(s[:])+"\n")); err != nil {
		return fmt.Errorf("save %s: %w", file, err)
	}
	return nil
}

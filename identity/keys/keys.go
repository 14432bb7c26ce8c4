// Package keys keeps the private keys of a control plane. A Store generates
// keys and signs with them by way of crypto.Signer; nobody else needs to know
// where they lie.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
)

var (
	// ErrNotFound: there is no key of that name; create it if it may be new.
	ErrNotFound = errors.New("key not found")
	// ErrExists: the name is taken; load that key, or delete it first.
	ErrExists = errors.New("key exists")
)

// Algorithm of a key.
type Algorithm int

const (
	// P256 is ECDSA on NIST P-256, the default.
	P256 Algorithm = iota
	// Ed25519 is RFC 8032, as C2SP signed notes use it.
	Ed25519
	// P384 is ECDSA on NIST P-384.
	P384
	// RSA2048 and RSA4096 are RSA of so many bits.
	RSA2048
	RSA4096
)

// algorithms are the names in configuration files.
var algorithms = map[string]Algorithm{"ec-p256": P256, "ec-p384": P384, "ed25519": Ed25519, "rsa-2048": RSA2048, "rsa-4096": RSA4096}

// ParseAlgorithm reads a name as configuration files have it: ec-p256, ec-p384,
// ed25519, rsa-2048, rsa-4096.
func ParseAlgorithm(name string) (Algorithm, error) {
	alg, ok := algorithms[name]
	if !ok {
		return 0, fmt.Errorf("%q is not a type of key: want one of ec-p256, ec-p384, ed25519, rsa-2048, rsa-4096", name)
	}
	return alg, nil
}

// Store keeps named keys. Names consist of letters, digits, '.', '_' and '-',
// start with a letter or digit, and have at most 100 characters. A Store is
// safe for concurrent use.
type Store interface {
	// Create generates a key under a new name. It is durable, where the store
	// is, when Create returns. ErrExists if the name is taken.
	Create(name string, alg Algorithm) (crypto.Signer, error)
	// Load returns the key of that name, or ErrNotFound.
	Load(name string) (crypto.Signer, error)
	// Delete removes a key. Deleting what is not there is no error.
	Delete(name string) error
}

// Ensure loads the key of that name and creates it if there is none.
func Ensure(s Store, name string, alg Algorithm) (crypto.Signer, error) {
	key, err := s.Load(name)
	if errors.Is(err, ErrNotFound) {
		key, err = s.Create(name, alg)
	}
	return key, err
}

func generate(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("unknown key algorithm %d", alg)
}

// CheckName accepts the names that every Store accepts.
func CheckName(name string) error {
	if name == "" || len(name) > 100 {
		return fmt.Errorf("key name %q: want 1 to 100 characters", name)
	}
	for i, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return fmt.Errorf("key name %q: want letters, digits, '.', '_', '-', the first a letter or digit", name)
		}
	}
	return nil
}

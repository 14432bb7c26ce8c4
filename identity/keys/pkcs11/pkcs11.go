//go:build pkcs11

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/ThalesGroup/crypto11"

	"github.com/writ-dev/writ/identity/keys"
)

// Config of a Store. All of it is required.
type Config struct {
	// Module is the path of the token's library, as
	// /usr/lib/softhsm/libsofthsm2.so.
	Module string
	// TokenLabel names the token.
	TokenLabel string
	// PINFile holds the user's PIN, in a file that nobody but this process's
	// user can read.
	PINFile string
}

// Store is a keys.Store in a token. The name of a key is its label.
type Store struct {
	token *crypto11.Context
	mu    sync.Mutex // creating: a token has no names that are unique
}

var _ keys.Store = (*Store)(nil)

// Open logs into the token. Close it.
func Open(cfg Config) (*Store, error) {
	pin, err := readPIN(cfg.PINFile)
	if err != nil {
		return nil, fmt.Errorf("PIN of token %q: %w", cfg.TokenLabel, err)
	}
	token, err := crypto11.Configure(&crypto11.Config{Path: cfg.Module, TokenLabel: cfg.TokenLabel, Pin: pin})
	if err != nil {
		return nil, fmt.Errorf("token %q of %s: %w", cfg.TokenLabel, cfg.Module, err)
	}
	return &Store{token: token}, nil
}

// Close logs out.
func (s *Store) Close() error { return s.token.Close() }

func readPIN(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("%s: mode %#o lets others in: chmod go-rwx it", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return "", err
	}
	pin := strings.TrimRight(string(data), "\r\n")
	if pin == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return pin, nil
}

// Create implements keys.Store. Tokens hold ECDSA and RSA keys here.
func (s *Store) Create(name string, alg keys.Algorithm) (crypto.Signer, error) {
	if err := keys.CheckName(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.Load(name); err == nil {
		return nil, fmt.Errorf("create key %s: %w", name, keys.ErrExists)
	} else if !errors.Is(err, keys.ErrNotFound) {
		return nil, err
	}
	var key crypto.Signer
	var err error
	switch id := []byte(name); alg {
	case keys.P256:
		key, err = s.token.GenerateECDSAKeyPairWithLabel(id, id, elliptic.P256())
	case keys.P384:
		key, err = s.token.GenerateECDSAKeyPairWithLabel(id, id, elliptic.P384())
	case keys.RSA2048:
		key, err = s.token.GenerateRSAKeyPairWithLabel(id, id, 2048)
	case keys.RSA4096:
		key, err = s.token.GenerateRSAKeyPairWithLabel(id, id, 4096)
	default:
		err = errors.New("tokens are asked for ECDSA and RSA keys only")
	}
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	return key, nil
}

// Load implements keys.Store.
func (s *Store) Load(name string) (crypto.Signer, error) {
	key, err := s.find(name)
	if err != nil {
		return nil, fmt.Errorf("load key %s: %w", name, err)
	}
	return key, nil
}

func (s *Store) find(name string) (crypto11.Signer, error) {
	if err := keys.CheckName(name); err != nil {
		return nil, err
	}
	label := bytes.Clone([]byte(name))
	pairs, err := s.token.FindKeyPairs(nil, label)
	switch {
	case err != nil:
		return nil, err
	case len(pairs) == 0:
		return nil, keys.ErrNotFound
	case len(pairs) > 1:
		return nil, fmt.Errorf("the token has %d keys of that label: delete those that are not this control plane's", len(pairs))
	}
	return pairs[0], nil
}

// Delete implements keys.Store.
func (s *Store) Delete(name string) error {
	key, err := s.find(name)
	if errors.Is(err, keys.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = key.Delete()
	}
	if err != nil {
		return fmt.Errorf("delete key %s: %w", name, err)
	}
	return nil
}

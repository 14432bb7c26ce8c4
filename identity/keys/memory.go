package keys

import (
	"crypto"
	"fmt"
	"sync"
)

// Memory is a Store that forgets everything when the process ends. Its zero
// value is ready to use.
type Memory struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer
}

var _ Store = (*Memory)(nil)

// Create implements Store.
func (m *Memory) Create(name string, alg Algorithm) (crypto.Signer, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	key, err := generate(alg)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.keys[name]; taken {
		return nil, fmt.Errorf("create key %s: %w", name, ErrExists)
	}
	if m.keys == nil {
		m.keys = map[string]crypto.Signer{}
	}
	m.keys[name] = key
	return key, nil
}

// Load implements Store.
func (m *Memory) Load(name string) (crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, ok := m.keys[name]
	if !ok {
		return nil, fmt.Errorf("load key %s: %w", name, ErrNotFound)
	}
	return key, nil
}

// Delete implements Store.
func (m *Memory) Delete(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, name)
	return nil
}

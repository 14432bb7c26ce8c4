package keys

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
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

// maxFile bounds what is read of a key file, in bytes.
const maxFile = 64 << 10

// Disk is a Store of PKCS #8 PEM files, NAME.pem with mode 0600, in one
// directory with mode 0700.
type Disk struct {
	dir string
}

var _ Store = (*Disk)(nil)

// OpenDisk opens the directory, and creates it if it is missing. A directory
// that others can enter, or that belongs to someone else, is an error.
func OpenDisk(dir string) (*Disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open key directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open key directory: %w", err)
	}
	if err := private(info); err != nil {
		return nil, fmt.Errorf("key directory %s: %w", dir, err)
	}
	// What a crash left half-written was never a key.
	stale, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil {
		return nil, err
	}
	for _, f := range stale {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open key directory: %w", err)
		}
	}
	return &Disk{dir: dir}, nil
}

// Create implements Store. The file appears complete or not at all.
func (d *Disk) Create(name string, alg Algorithm) (crypto.Signer, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	key, err := generate(alg)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	if err := d.write(name, key); err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	return key, nil
}

func (d *Disk) write(name string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writeNew(d.path(name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// writeNew makes a file, mode 0600, that is durable when writeNew returns. The error
// is ErrExists where the name is taken.
func writeNew(file string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	// A link, not a rename: it never replaces a key that another process made
	// meanwhile.
	if err := os.Link(tmp.Name(), file); errors.Is(err, fs.ErrExist) {
		return ErrExists
	} else if err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(file))
}

// Load implements Store. It refuses a file that anyone but its owner can read
// or write, a symbolic link, and a file of another user.
func (d *Disk) Load(name string) (crypto.Signer, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	file := d.path(name)
	data, err := readPrivate(file, syscall.O_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("load key %s: %w", name, err)
	}
	key, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("load key %s: %s: %w", name, file, err)
	}
	return key, nil
}

// readPrivate reads a file that nobody but its owner, this user, can read or write.
// The error is ErrNotFound where there is none, and names the file otherwise.
func readPrivate(file string, flags int) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", file)
	}
	if err := private(info); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Delete implements Store.
func (d *Disk) Delete(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	err := os.Remove(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("delete key %s: %w", name, err)
	}
	return atomicfile.SyncDir(d.dir)
}

func (d *Disk) path(name string) string { return filepath.Join(d.dir, name+".pem") }

// parse reads exactly one PKCS #8 block. Errors never quote the content.
func parse(data []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	if block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("PEM block is %s, want PRIVATE KEY", strings.ToUpper(block.Type))
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("more than one PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS #8 private key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

func private(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("mode %#o lets others in: chmod go-rwx it, and replace the key if someone may have read it", mode)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to uid %d, not to this process (uid %d)", st.Uid, os.Geteuid())
	}
	return nil
}

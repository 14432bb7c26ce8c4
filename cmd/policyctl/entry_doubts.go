package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/registry"
)

// warnDoubts says on stderr what an entry that was made proves less than it
// seems to.
func (a *app) warnDoubts(e *types.Entry) {
	var selectors []registry.Selector
	for _, s := range e.GetSelectors() {
		selectors = append(selectors, registry.Selector{Type: s.GetType(), Value: s.GetValue()})
	}
	for _, doubt := range append(registry.Doubts(selectors), hashDoubts(selectors, interpreterDirs)...) {
		fmt.Fprintln(a.stderr, "warning:", doubt)
	}
}

var interpreterDirs = []string{"/usr/bin", "/usr/local/bin"}

// maxHashed is the size in bytes of the largest program that is compared.
const maxHashed = 256 << 20

// hashDoubts compares unix:sha256 with the interpreters of this machine, which
// is often one of those that the entry is for.
func hashDoubts(selectors []registry.Selector, dirs []string) []string {
	wanted := map[string]bool{}
	for _, s := range selectors {
		if sum, ok := strings.CutPrefix(s.Value, "sha256:"); ok && s.Type == "unix" {
			wanted[sum] = true
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	var doubts []string
	seen := map[string]bool{}
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, f := range files {
			if !registry.IsInterpreter(f.Name()) {
				continue
			}
			path, err := filepath.EvalSymlinks(filepath.Join(dir, f.Name()))
			if err != nil || seen[path] {
				continue
			}
			seen[path] = true
			if sum := hashFile(path); wanted[sum] {
				doubts = append(doubts, fmt.Sprintf("selector unix:sha256:%s is %s on this machine: an interpreter runs any script, so every script of whoever may run it matches", sum, path))
			}
		}
	}
	return doubts
}

// hashFile returns the SHA-256 of a file in hex, or nothing if it cannot.
func hashFile(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxHashed {
		return ""
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// packages are the Debian packages of the peers that apt installs.
var packages = map[string]string{"nginx": "nginx-light", "wrk": "wrk"}

// ensure installs what is missing. A peer that cannot be installed fails the
// suite: a table without its peers says nothing.
func (b *bench) ensure(ctx context.Context, programs ...string) error {
	var missing []string
	for _, p := range programs {
		if _, err := lookPath(p); err != nil {
			missing = append(missing, packages[p])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	b.say("  installing %s", strings.Join(missing, " "))
	script := "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends " + strings.Join(missing, " ")
	argv := []string{"sh", "-c", script}
	if os.Getuid() != 0 {
		argv = append([]string{"sudo", "-n"}, argv...)
	}
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot install %s (install by hand, or run as root): %w\n%s", strings.Join(missing, " "), err, out)
	}
	return nil
}

// lookPath looks where Debian puts servers, too: it is not on everyone's PATH.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		if path, serr := exec.LookPath(filepath.Join("/usr/sbin", program)); serr == nil {
			return path, nil
		}
	}
	return path, err
}

// built fails when a program is missing in bin.
func (b *bench) built(programs ...string) error {
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(b.bin, p)); err != nil {
			return fmt.Errorf("%w (run `make build`)", err)
		}
	}
	return nil
}

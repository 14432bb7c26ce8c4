// Package attesttest makes what the kernel would say of processes in
// containers: control groups in a directory that stands in for /proc. Containers that
// real engines made are in test/interop.
package attesttest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// ID is a container's.
var ID = strings.Repeat("c0ffee12", 8)

// PodUID is a pod's.
const PodUID = "6a0e1c1c-3f5e-4b6c-9d1a-0a1b2c3d4e5f"

// Control groups as container runtimes make them.
var (
	Docker     = "/system.slice/docker-" + ID + ".scope"
	Containerd = "/default/" + ID
	Pod        = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(PodUID, "-", "_") + ".slice/cri-containerd-" + ID + ".scope"
)

// Proc makes a directory in which process PID has the control group.
func Proc(t testing.TB, group string) (proc string, pid int) {
	t.Helper()
	proc, pid = t.TempDir(), 4711
	dir := filepath.Join(proc, strconv.Itoa(pid))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::"+group+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return proc, pid
}

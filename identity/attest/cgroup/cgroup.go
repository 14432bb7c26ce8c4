// Package cgroup says in which container, pod or systemd unit a process is, by
// the control groups that the kernel has it in.
//
// A process cannot choose its control group, but it may be given a part of the
// tree to itself (a user's session, a container with a manager of its own), and
// can give that part any names. So only names count that lead from the root of
// the tree, and of several the outermost: below it everything is the container's
// own. The mounts of a process (mountinfo), which say the same, are not read: a
// process can mount what it likes in a namespace of its own.
package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNone means that the process is in no container, or unit, that is known.
var ErrNone = errors.New("in none")

// Proc is where the kernel tells of processes.
const Proc = "/proc"

// maxFile is more bytes than /proc/PID/cgroup has: a dozen lines at most.
const maxFile = 64 << 10

// Groups are the control groups of a process: one in the unified hierarchy
// (version 2), several with version 1.
type Groups []Group

// Group is one line of /proc/PID/cgroup (cgroups(7)).
type Group struct {
	// Controllers are of version 1; empty in the unified hierarchy.
	Controllers string
	// Path from the root of the reader's cgroup namespace.
	Path string
}

// Of reads the control groups of a process; proc is Proc but in tests.
func Of(proc string, pid int) (Groups, error) {
	f, err := os.Open(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	return parse(data)
}

func parse(data []byte) (Groups, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("more than %d bytes of control groups", maxFile)
	}
	var groups Groups
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || !strings.HasPrefix(fields[2], "/") {
			return nil, fmt.Errorf("a line that is no control group: %.100q", line)
		}
		groups = append(groups, Group{Controllers: fields[1], Path: fields[2]})
	}
	return groups, nil
}

// Container is a container by the name of its control group.
type Container struct {
	// ID is 64 hexadecimal digits.
	ID string
	// Name says who made the group: docker, nerdctl or libpod, and where the engine
	// makes groups without systemd the one below the root that it makes them in.
	// Empty in Kubernetes.
	Name string
	// PodUID is of the pod; empty outside of Kubernetes.
	PodUID string
}

// Patterns of paths from the root. The pod's uid has underscores where systemd
// manages the groups. Whoever reads from a cgroup namespace of its own sees the
// beginning cut off, which parents allow for.
var containers = []*regexp.Regexp{
	// Kubernetes, systemd manages the groups.
	regexp.MustCompile(`^(?:kubelet\.slice/)?(?:(?:kubelet-)?kubepods\.slice/)?(?:(?:kubelet-)?kubepods-(?:besteffort|burstable)\.slice/)?` +
		`(?:kubelet-)?kubepods(?:-besteffort|-burstable)?-pod(?P<pod>[0-9a-f]{8}(?:_[0-9a-f]{4}){3}_[0-9a-f]{12})\.slice/` +
		`(?:docker|cri-containerd|crio|libpod)-(?P<id>[0-9a-f]{64})\.scope(?:/|$)`),
	// Kubernetes, the kubelet manages them.
	regexp.MustCompile(`^(?:kubelet/)?(?:kubepods/)?(?:besteffort/|burstable/)?` +
		`pod(?P<pod>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/(?P<id>[0-9a-f]{64})(?:/|$)`),
	// Kubernetes, systemd manages the kubelet's groups and containerd does not know.
	regexp.MustCompile(`^system\.slice/containerd\.service/kubepods(?:-besteffort|-burstable)?-pod(?P<pod>[0-9a-f]{8}(?:_[0-9a-f]{4}){3}_[0-9a-f]{12})\.slice:` +
		`cri-containerd:(?P<id>[0-9a-f]{64})(?:/|$)`),
	// Docker, nerdctl and Podman as root, with systemd.
	regexp.MustCompile(`^system\.slice/(?P<name>docker|nerdctl)-(?P<id>[0-9a-f]{64})\.scope(?:/|$)`),
	regexp.MustCompile(`^machine\.slice/(?P<name>libpod)-(?P<id>[0-9a-f]{64})\.scope(?:/|$)`),
	// Podman without it.
	regexp.MustCompile(`^libpod_parent/(?P<name>libpod)-(?P<id>[0-9a-f]{64})(?:/|$)`),
}

// Without systemd engines make groups in one below the root. Its name must be a
// known one: another that stands there may be somebody's own.
var (
	below = regexp.MustCompile(`^([^/]+)/([0-9a-f]{64})(?:/|$)`)
	known = []string{"docker", "default"}
)

// Container returns the container that the process is in. Parents are names of
// groups below the root, beside docker and default, in which an engine makes those
// of containers: containerd's namespaces. Hierarchies that contradict each other
// are an error: one of them may be in other hands.
func (g Groups) Container(parents ...string) (Container, error) {
	var found Container
	for _, group := range g {
		c, ok := containerOf(group.Path, parents)
		switch {
		case !ok:
		case found.ID == "":
			found = c
		case found != c:
			return Container{}, fmt.Errorf("two containers in the control groups: %s and %s", found.ID, c.ID)
		}
	}
	if found.ID == "" {
		return Container{}, fmt.Errorf("container: %w", ErrNone)
	}
	return found, nil
}

func containerOf(path string, parents []string) (Container, bool) {
	path = relative(path)
	if m := below.FindStringSubmatch(path); m != nil && (slices.Contains(known, m[1]) || slices.Contains(parents, m[1])) {
		return Container{ID: m[2], Name: m[1]}, true
	}
	for _, pattern := range containers {
		m := pattern.FindStringSubmatch(path)
		if m == nil {
			continue
		}
		c := Container{ID: m[pattern.SubexpIndex("id")]}
		if i := pattern.SubexpIndex("pod"); i >= 0 {
			c.PodUID = strings.ReplaceAll(m[i], "_", "-")
		}
		if i := pattern.SubexpIndex("name"); i >= 0 {
			c.Name = m[i]
		}
		return c, true
	}
	return Container{}, false
}

// relative cuts off the way up that leads out of the reader's cgroup namespace.
func relative(path string) string {
	path = strings.TrimPrefix(path, "/")
	for strings.HasPrefix(path, "../") {
		path = path[len("../"):]
	}
	return path
}

// Unit returns the unit of systemd that the process is in, as systemd itself
// finds it: the first name on the way from the root that is not a slice. What a
// user's own systemd runs is of that user's unit, user@1000.service.
func (g Groups) Unit() (string, error) {
	for _, group := range g {
		// The unified hierarchy, or the one of version 1 that is systemd's own.
		if group.Controllers != "" && group.Controllers != "name=systemd" {
			continue
		}
		if strings.HasPrefix(group.Path, "/..") {
			return "", errors.New("unit of systemd: the control groups are seen from inside of a container")
		}
		for name := range strings.SplitSeq(strings.TrimPrefix(group.Path, "/"), "/") {
			// What begins with a full stop or an underscore is escaped (systemd's
			// CONTROL GROUP API).
			name = strings.TrimPrefix(name, "_")
			switch {
			case strings.HasSuffix(name, ".slice"):
				continue
			case validUnit(name):
				return name, nil
			}
			break
		}
	}
	return "", fmt.Errorf("unit of systemd: %w", ErrNone)
}

func validUnit(name string) bool {
	base, ok := strings.CutSuffix(name, ".service")
	if !ok {
		base, ok = strings.CutSuffix(name, ".scope")
	}
	if !ok || base == "" || len(name) > 255 {
		return false
	}
	return !strings.ContainsFunc(base, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune(`:-_.\@`, r)
	})
}

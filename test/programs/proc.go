package programs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory is what a process holds, in bytes.
type Memory struct {
	// RSS counts every resident page, those of the binary included.
	RSS int64
	// Anonymous counts heap and stacks: what the program itself asked for.
	Anonymous int64
}

// MemoryOf reads /proc/<pid>/smaps_rollup.
func MemoryOf(pid int) (Memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	return parseMemory(data)
}

func parseMemory(rollup []byte) (Memory, error) {
	var m Memory
	found := 0
	for scan := bufio.NewScanner(bytes.NewReader(rollup)); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("smaps_rollup: %q: %w", scan.Text(), err)
		}
		switch fields[0] {
		case "Rss:":
			m.RSS = kb << 10
			found++
		case "Anonymous:":
			m.Anonymous = kb << 10
			found++
		}
	}
	if found != 2 {
		return Memory{}, fmt.Errorf("smaps_rollup: found %d of Rss and Anonymous", found)
	}
	return m, nil
}

// PeakRSS is the most that a process ever held, in bytes: VmHWM of proc_pid_status(5).
func PeakRSS(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}

// RaiseFiles raises the limit of open files of a process to at least n, the hard
// limit too where that takes a privilege that this process has, and returns what it
// is then.
func RaiseFiles(pid int, n uint64) (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	if limit.Cur >= n {
		return limit.Cur, nil
	}
	for _, want := range []unix.Rlimit{{Cur: n, Max: max(n, limit.Max)}, {Cur: min(n, limit.Max), Max: limit.Max}} {
		if unix.Prlimit(pid, unix.RLIMIT_NOFILE, &want, nil) == nil {
			return want.Cur, nil
		}
	}
	return limit.Cur, nil
}

// Descendants are the processes below pid, and the executable of each.
func Descendants(pid int) (map[int]string, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		parent, err := strconv.Atoi(statFields(data)[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], child)
	}
	found := map[int]string{}
	for todo := slices.Clone(children[pid]); len(todo) > 0; {
		child := todo[0]
		todo = append(todo[1:], children[child]...)
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", child)); err == nil {
			found[child] = exe
		}
	}
	return found, nil
}

// CPUTicks is the CPU time of a process and of those children that it has
// waited for, in hundredths of a second.
func CPUTicks(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, f := range statFields(data)[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += n
	}
	return sum, nil
}

// statFields gives the fields of /proc/<pid>/stat from the state on. The name
// before it stands in parentheses and may hold anything.
func statFields(stat []byte) []string {
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}

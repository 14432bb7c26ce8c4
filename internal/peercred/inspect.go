package peercred

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of start times in /proc: USER_HZ is 100 wherever Linux
// runs Go.
const clockTick = time.Second / 100

// facts is what the kernel says. Tests stand in for an older one.
type facts interface {
	// peerPIDFD returns the pidfd of the process that connected, or
	// ENOPROTOOPT where the kernel cannot.
	peerPIDFD(socket int) (int, error)
	openPID(pid int) (int, error)
	// started returns when a process started, by the clock since boot.
	started(pid int) (time.Duration, error)
	// uptime is the time since boot.
	uptime() (time.Duration, error)
}

// inspect asks the kernel who connected to the socket, which was accepted at
// the given time since boot.
func inspect(socket int, accepted time.Duration, k facts) (Peer, error) {
	cred, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	if cred.Pid <= 0 {
		return Peer{}, errors.New("the caller is in a process namespace that cannot be seen from here")
	}
	p := Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}
	if p.Groups, err = peerGroups(socket); err != nil {
		return Peer{}, fmt.Errorf("peer groups: %w", err)
	}
	fd, err := k.peerPIDFD(socket)
	if errors.Is(err, unix.ENOPROTOOPT) {
		fd, err = openChecked(p, accepted, k)
	}
	if errors.Is(err, unix.ESRCH) {
		return Peer{}, ErrGone
	}
	if err != nil {
		return Peer{}, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	// Non-blocking makes the runtime's poller wait for the end of the process,
	// not a thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return Peer{}, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	if err := p.Alive(); err != nil {
		p.Close()
		return Peer{}, err
	}
	return p, nil
}

// openChecked opens the process by its number and makes sure that it can be
// the one that connected. The pidfd comes first: it pins the number, so that
// what the checks read is about the process that it names.
func openChecked(p Peer, accepted time.Duration, k facts) (int, error) {
	fd, err := k.openPID(p.PID)
	if err != nil {
		return -1, err
	}
	if err := checkIsCaller(p, accepted, k); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func checkIsCaller(p Peer, accepted time.Duration, k facts) error {
	started, err := k.started(p.PID)
	if err != nil {
		return err
	}
	// Start times are rounded down to the clock tick, so this refuses no caller
	// however young.
	if started >= accepted {
		return fmt.Errorf("process id %d was reused: %w", p.PID, unix.ESRCH)
	}
	uid, _, err := p.Effective()
	if err != nil {
		return err
	}
	if uid != p.UID {
		return fmt.Errorf("process %d now runs as uid %d, connected as %d: %w", p.PID, uid, p.UID, unix.ESRCH)
	}
	return nil
}

// peerGroups returns the supplementary groups of the peer (SO_PEERGROUPS,
// socket(7)).
func peerGroups(socket int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && size > uint32(len(groups))*4:
			groups = make([]uint32, size/4)
		case errno != 0:
			return nil, errno
		default:
			return groups[: size/4 : size/4], nil
		}
	}
}

// kernel is the running one.
type kernel struct{}

func (kernel) peerPIDFD(socket int) (int, error) {
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.EINVAL) {
		// What kernels before 6.16 say of a process that has been reaped.
		err = unix.ESRCH
	}
	return fd, err
}

func (kernel) openPID(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }

func (kernel) started(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStarted(string(data))
}

// parseStarted reads field 22 of /proc/PID/stat (proc_pid_stat(5)). The second
// field is the program's name in parentheses and may hold anything, so counting
// starts behind the last parenthesis.
func parseStarted(stat string) (time.Duration, error) {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, errors.New("/proc/PID/stat: too few fields")
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil || ticks < 0 || ticks > int64(1<<62)/int64(clockTick) {
		return 0, fmt.Errorf("/proc/PID/stat: start time %q is not a number of ticks", fields[19])
	}
	return time.Duration(ticks) * clockTick, nil
}

func (kernel) uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// parseEffective reads the effective ids, second of the four on the lines Uid
// and Gid of /proc/PID/status (proc_pid_status(5)).
func parseEffective(status string) (uid, gid uint32, err error) {
	ids := map[string]uint32{}
	for line := range strings.Lines(status) {
		name, values, _ := strings.Cut(line, ":")
		fields := strings.Fields(values)
		if name != "Uid" && name != "Gid" || len(fields) != 4 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/PID/status: %s %q is not an id", name, fields[1])
		}
		ids[name] = uint32(n)
	}
	if len(ids) != 2 {
		return 0, 0, errors.New("/proc/PID/status: no Uid and Gid")
	}
	return ids["Uid"], ids["Gid"], nil
}

package upstream

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoSocket reports that no process holds a socket with the address pair. One
// that its process has closed already has no owner and no inode any more, and
// the kernel may report uid 0 for it: it must not pass for root's.
var errNoSocket = errors.New("no process holds the socket at the other end")

// ownerTCP is the user who owns the client's end of c, both on this machine.
func ownerTCP(c *net.TCPConn) (int, error) {
	client, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return -1, err
	}
	server, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return -1, err
	}
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	uid, err := askDiag(client, server)
	if err == nil || errors.Is(err, errNoSocket) {
		return uid, err
	}
	// Some sandboxes allow no netlink; /proc says the same, slower.
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, ferr := os.Open(table)
		if ferr != nil {
			continue
		}
		uid, ferr := scanTable(f, client, server)
		f.Close()
		if ferr == nil {
			return uid, nil
		}
	}
	return -1, err
}

// askDiag asks the kernel for one socket by sock_diag(7).
func askDiag(client, server netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return -1, fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers before sendto returns; the timeout is for a surprise.
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	if err := unix.Sendto(fd, diagRequest(client, server), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, fmt.Errorf("sock_diag: %w", err)
	}
	var buf [4096]byte
	for {
		n, from, err := unix.Recvfrom(fd, buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("sock_diag: %w", err)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
			continue // not from the kernel
		}
		return parseDiag(buf[:n], client, server)
	}
}

const (
	sizeofHeader  = 16 // struct nlmsghdr
	sizeofRequest = 56 // struct inet_diag_req_v2
	sizeofMessage = 72 // struct inet_diag_msg
)

// diagRequest is a struct nlmsghdr with a struct inet_diag_req_v2.
func diagRequest(client, server netip.AddrPort) []byte {
	b := make([]byte, sizeofHeader+sizeofRequest)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], 1)
	r := b[sizeofHeader:]
	r[0] = unix.AF_INET
	if client.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	r[1] = unix.IPPROTO_TCP
	ne.PutUint32(r[4:], 0xffffffff) // any state; looked at in the answer
	putSockID(r[8:], client, server)
	return b
}

// putSockID writes a struct inet_diag_sockid without interface and with the
// cookie that means none.
func putSockID(b []byte, src, dst netip.AddrPort) {
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	copy(b[4:20], src.Addr().AsSlice())
	copy(b[20:36], dst.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[40:], 0xffffffff)
	binary.NativeEndian.PutUint32(b[44:], 0xffffffff)
}

// parseDiag reads a struct nlmsghdr with a struct inet_diag_msg.
func parseDiag(b []byte, client, server netip.AddrPort) (int, error) {
	ne := binary.NativeEndian
	if len(b) < sizeofHeader+4 {
		return -1, errors.New("sock_diag: short answer")
	}
	if ne.Uint16(b[4:]) == unix.NLMSG_ERROR {
		errno := unix.Errno(-int32(ne.Uint32(b[sizeofHeader:])))
		if errno == unix.ENOENT {
			return -1, errNoSocket
		}
		return -1, fmt.Errorf("sock_diag: %w", errno)
	}
	m := b[sizeofHeader:]
	if ne.Uint16(b[4:]) != unix.SOCK_DIAG_BY_FAMILY || len(m) < sizeofMessage {
		return -1, errors.New("sock_diag: unexpected answer")
	}
	// struct inet_diag_msg: family, state, timer, retrans, id (48 bytes),
	// expires, rqueue, wqueue, uid, inode.
	if binary.BigEndian.Uint16(m[4:]) != client.Port() || binary.BigEndian.Uint16(m[6:]) != server.Port() {
		return -1, errors.New("sock_diag: answer about another socket")
	}
	uid, inode := ne.Uint32(m[64:]), ne.Uint32(m[68:])
	if inode == 0 {
		return -1, errNoSocket
	}
	return int(uid), nil
}

// scanTable looks for the client's end in a table in the form of
// /proc/net/tcp or tcp6 (proc_pid_net(5)).
func scanTable(r io.Reader, client, server netip.AddrPort) (int, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			continue
		}
		local, err := parseTableAddr(f[1])
		if err != nil || local != client {
			continue
		}
		remote, err := parseTableAddr(f[2])
		if err != nil || remote != server {
			continue
		}
		if f[9] == "0" {
			return -1, errNoSocket
		}
		uid, err := strconv.ParseUint(f[7], 10, 32)
		if err != nil {
			return -1, fmt.Errorf("uid %q: %w", f[7], err)
		}
		return int(uid), nil
	}
	if err := lines.Err(); err != nil {
		return -1, err
	}
	return -1, errNoSocket
}

// parseTableAddr reads 0100007F:1F90: the address as 32-bit words in the
// machine's byte order, the port as a number.
func parseTableAddr(s string) (netip.AddrPort, error) {
	addr, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(addr)
	if !ok || err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address of the table", s)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), uint16(p)), nil
}

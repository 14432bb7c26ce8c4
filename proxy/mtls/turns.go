package mtls

import (
	"net"
	"net/netip"
	"sync"
)

// maxParked connections wait for each of the handshakes that one address may
// have under way.
const maxParked = 4

// turns shares handshakes among the addresses that connect, so that one that
// begins many and ends none does not keep the others out.
type turns struct {
	limit int

	mu    sync.Mutex
	peers map[netip.Addr]*turn
}

// turn is what one address has under way.
type turn struct {
	running int
	parked  []net.Conn
	// said is set when a connection was turned away.
	said bool
}

// place is what a connection gets.
type place uint8

const (
	begins place = iota
	waits
	// full: there is no place to wait either. fullAgain: and that is no news.
	full
	fullAgain
)

func (t *turns) enter(from netip.Addr, conn net.Conn) place {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[from]
	if p == nil {
		p = &turn{}
		t.peers[from] = p
	}
	switch {
	case p.running < t.limit:
		p.running++
		return begins
	case len(p.parked) < maxParked*t.limit:
		p.parked = append(p.parked, conn)
		return waits
	case p.said:
		return fullAgain
	}
	p.said = true
	return full
}

// leave ends a handshake, and gives the connection whose turn it is now.
func (t *turns) leave(from netip.Addr) (next net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[from]
	if len(p.parked) > 0 {
		next, p.parked[0] = p.parked[0], nil
		p.parked = p.parked[1:]
		return next
	}
	if p.running--; p.running == 0 {
		delete(t.peers, from)
	}
	return nil
}

// origin is the address that counts: of IPv6 the network, since one machine
// may have all of its addresses.
func origin(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if network, err := ip.Prefix(64); err == nil {
			return network.Addr()
		}
	}
	return ip
}

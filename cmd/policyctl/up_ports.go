package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/internal/mesh"
)

// lowestPort is the first that ports are chosen from.
const lowestPort = 15000

// ports are those that the mesh file leaves out: chosen once, then kept, so
// that addresses in shell histories and configuration files stay right.
type ports struct {
	kept  map[string]int
	taken map[int]bool
	// moved are the uses whose kept port somebody else has meanwhile.
	moved []string
}

// assignPorts chooses all ports of the mesh and of its programs, and keeps
// them at path.
func assignPorts(m *mesh.Mesh, path string) (*ports, error) {
	p := &ports{kept: map[string]int{}, taken: map[int]bool{}}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &p.kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kept ports: %s: %w", path, err)
	}
	for i := range m.Services {
		s := &m.Services[i]
		p.taken[s.Port] = true
		if _, port, err := net.SplitHostPort(s.Address); err == nil {
			n, _ := strconv.Atoi(port)
			p.taken[n] = true
		}
		for _, u := range s.Upstreams {
			p.taken[u.Port] = true
		}
	}
	now := map[string]int{}
	choose := func(use string) (int, error) {
		port, err := p.choose(use)
		now[use] = port
		return port, err
	}
	uses := []string{useIssuer, useControl}
	for i := range m.Services {
		s := &m.Services[i]
		if s.Listens() {
			uses = append(uses, useInbound(s.Name))
		}
		uses = append(uses, useAdmin(s.Name))
		if len(s.Command) > 0 && s.Port == 0 {
			if s.Port, err = choose(s.Name + "/app"); err != nil {
				return nil, err
			}
		}
		for j := range s.Upstreams {
			u := &s.Upstreams[j]
			if u.Port == 0 {
				if u.Port, err = choose(s.Name + "/upstream/" + u.Service); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, use := range uses {
		if _, err := choose(use); err != nil {
			return nil, err
		}
	}
	p.kept = now
	if data, err = json.MarshalIndent(now, "", "  "); err != nil {
		return nil, err
	}
	return p, writeFile(path, append(data, '\n'))
}

// Uses of a port, as kept in ports.json.
const (
	useIssuer  = "writd/issuer"
	useControl = "writd/control"
)

func useInbound(service string) string { return service + "/inbound" }
func useAdmin(service string) string   { return service + "/admin" }

// address is where a program listens or is found.
func (p *ports) address(use string) string { return loopback(p.kept[use]) }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// choose returns the kept port of a use, or a free one.
func (p *ports) choose(use string) (int, error) {
	if port := p.kept[use]; port >= 1 && port <= 65535 && !p.taken[port] {
		if free(port) {
			p.taken[port] = true
			return port, nil
		}
		p.moved = append(p.moved, use)
	}
	// Below the range from which the kernel takes the local ports of outgoing
	// connections; one of those would not be free the next time.
	end := ephemeralStart()
	for range 1000 {
		port := lowestPort + rand.IntN(end-lowestPort)
		if !p.taken[port] && free(port) {
			p.taken[port] = true
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port between %d and %d for %s", lowestPort, end, use)
}

func free(port int) bool {
	ln, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

// ephemeralStart is the first port that the kernel gives to outgoing
// connections (ip(7), ip_local_port_range).
func ephemeralStart() int {
	const usual = 32768
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\t")
	if n, err := strconv.Atoi(first); err == nil && n > lowestPort+1000 {
		return n
	}
	return usual
}

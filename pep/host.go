package pep

import (
	"net/netip"
	"strconv"
	"strings"
)

// CheckHost says why a host (a Host header or :authority) must not be decided
// on; empty is fine. What it accepts, uri-host [":" port] of RFC 3986, section
// 3.2, in ASCII and without a zone, is passed on by net/http byte for byte.
func CheckHost(host string) (why string) {
	if host == "" {
		return "request without a host"
	}
	name, port := host, ""
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 {
			return "host is not host[:port]"
		}
		// A zone has meaning on one machine only (RFC 6874, section 1).
		addr, err := netip.ParseAddr(host[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "host is not an IPv6 address without a zone"
		}
		port = host[end+1:]
	} else {
		if i := strings.IndexByte(host, ':'); i >= 0 {
			name, port = host[:i], host[i:]
		}
		if !isRegName(name) {
			return "host is not a name (RFC 3986, section 3.2.2)"
		}
	}
	if port != "" {
		if _, err := strconv.ParseUint(port[1:], 10, 16); port[0] != ':' || err != nil {
			return "host has an invalid port"
		}
	}
	return ""
}

// isRegName reports whether s is a reg-name with at least one character.
func isRegName(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-._~!$&'()*+,;=", c) >= 0:
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			i += 2
		default:
			return false
		}
	}
	return s != ""
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

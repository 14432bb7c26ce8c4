package program

import (
	"fmt"
	"net"
	"net/netip"
	"regexp/syntax"
	"strings"

	"github.com/gobwas/glob"
)

// patterns are the compiled operands of a Program, each text once.
type patterns struct {
	globs   map[string]*glob.Pattern
	regexes map[string]matcher
	cidrs   map[string]netip.Prefix
	paths   map[string]*path
}

func newPatterns() *patterns {
	return &patterns{
		globs:   map[string]*glob.Pattern{},
		regexes: map[string]matcher{},
		cidrs:   map[string]netip.Prefix{},
		paths:   map[string]*path{},
	}
}

// add compiles s if op is an operator with patterns.
func (p *patterns) add(op Op, s string) error {
	switch op {
	case Glob, Regex, PathMatch:
		if len(s) > maxPattern {
			return fmt.Errorf("a pattern of %d bytes, more than %d", len(s), maxPattern)
		}
	}
	switch op {
	case Glob:
		return compileOnce(p.globs, s, compileGlob)
	case Regex:
		return compileOnce(p.regexes, s, compileRegex)
	case CIDR:
		return compileOnce(p.cidrs, s, compileCIDR)
	case PathMatch:
		return compileOnce(p.paths, s, compilePath)
	}
	return nil
}

func compileOnce[T any](done map[string]T, s string, compile func(string) (T, error)) error {
	if _, ok := done[s]; ok {
		return nil
	}
	v, err := compile(s)
	if err != nil {
		return err
	}
	done[s] = v
	return nil
}

// compileGlob takes "delimiters\x00pattern". The delimiters are what OPA's
// glob.match is called with after its defaults: none for null, "." for [].
func compileGlob(s string) (*glob.Pattern, error) {
	delimiters, pattern, ok := strings.Cut(s, "\x00")
	if !ok {
		return nil, fmt.Errorf("glob %q has no delimiters before a NUL", s)
	}
	g, err := glob.Compile(pattern, []rune(delimiters)...)
	if err != nil {
		return nil, fmt.Errorf("glob %q: %w", pattern, err)
	}
	return g, nil
}

// compileCIDR takes what net.ParseCIDR takes, because OPA does, and gives an
// IPv4-mapped network as IPv4, because net.IPNet.Contains compares it so.
func compileCIDR(s string) (netip.Prefix, error) {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	ones, bits := n.Mask.Size()
	addr, _ := netip.AddrFromSlice(n.IP)
	if n.IP.To4() != nil && bits == 128 {
		ones -= 96
	}
	return netip.PrefixFrom(addr.Unmap(), ones), nil
}

// parseAddress is net.ParseIP: no zones. IPv4-mapped addresses come as IPv4.
func parseAddress(s string) (netip.Addr, bool) {
	if s == "" {
		return netip.Addr{}, false // Without the error that this would make.
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// globEnds are texts that whatever matches the glob begins and ends with.
func globEnds(s string) (prefix, suffix string) {
	const special = "*?[]{}\\"
	_, pattern, _ := strings.Cut(s, "\x00")
	first, last := strings.IndexAny(pattern, special), strings.LastIndexAny(pattern, special)
	if first < 0 {
		return pattern, pattern
	}
	return pattern[:first], pattern[last+1:]
}

// regexPrefix is a text that whatever matches the expression begins with.
func regexPrefix(s string) string {
	re, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return ""
	}
	re = re.Simplify()
	if re.Op != syntax.OpConcat || len(re.Sub) < 2 || re.Sub[0].Op != syntax.OpBeginText {
		return ""
	}
	if lit := re.Sub[1]; lit.Op == syntax.OpLiteral && lit.Flags&syntax.FoldCase == 0 {
		return string(lit.Rune)
	}
	return ""
}

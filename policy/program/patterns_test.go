package program

import (
	"net"
	"strings"
	"testing"
)

func TestEnds(t *testing.T) {
	for glob, want := range map[string][2]string{
		"a/b":        {"a/b", "a/b"},
		"/a-b,c/*":   {"/a-b,c/", ""},
		"*.x":        {"", ".x"},
		"a{b,c}d":    {"a", "d"},
		"a?b[!x-y]c": {"a", "c"},
		`a\*b`:       {"a", "b"},
		`a\b`:        {"a", "b"},
	} {
		prefix, suffix := globEnds("\x00" + glob)
		if got := [2]string{prefix, suffix}; got != want {
			t.Errorf("%q begins and ends with %q; want %q", glob, got, want)
		}
	}
	for regex, want := range map[string]string{
		"^/a/.*": "/a/", "^abc$": "abc", "abc": "", "^(?i)abc": "", "^(?i:a)b": "", "^abc*": "ab", "^a|b": "", "(?m)^a": "",
		"^[a]b": "ab", "(": "", `\Aab`: "ab", "^": "",
	} {
		if got := regexPrefix(regex); got != want {
			t.Errorf("%q begins with %q; want %q", regex, got, want)
		}
	}
}

// FuzzEnds: what matches has the ends by which it is looked up.
func FuzzEnds(f *testing.F) {
	for _, s := range []string{"ab", "/a-b/c", "a.b"} {
		for _, p := range []string{"a*", "^a+b", "{a,/a}-?*", "[a-b]?b", `\a*`, "^(?i)a|b"} {
			f.Add(p, ".", s)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, delimiters, s string) {
		if strings.Contains(delimiters, "\x00") || len(pattern) > 40 || len(s) > 40 || seen(pattern) != pattern || seen(s) != s {
			return
		}
		if g, err := compileGlob(delimiters + "\x00" + pattern); err == nil && g.Match(s) {
			if prefix, suffix := globEnds(delimiters + "\x00" + pattern); !strings.HasPrefix(s, prefix) || !strings.HasSuffix(s, suffix) {
				t.Errorf("glob %q matches %q, which is looked up by %q and %q", pattern, s, prefix, suffix)
			}
		}
		p := newPatterns()
		if p.add(Regex, pattern) == nil && p.regexes[pattern].MatchString(s) && !strings.HasPrefix(s, regexPrefix(pattern)) {
			t.Errorf("%q matches %q, which is looked up by %q", pattern, s, regexPrefix(pattern))
		}
	})
}

// FuzzCIDR compares with package net, which is what OPA uses.
func FuzzCIDR(f *testing.F) {
	for _, cidr := range []string{"10.0.0.0/8", "::/0", "::ffff:10.0.0.0/104", "::ffff:0:0/95", "0.0.0.0/0", "fe80::/10", "1.2.3.4/32", "::1.2.3.4/128"} {
		for _, addr := range []string{"10.1.2.3", "::ffff:10.1.2.3", "fe80::1%x", "1.2.3.4", "::1.2.3.4", "::", ""} {
			f.Add(cidr, addr)
		}
	}
	f.Fuzz(func(t *testing.T, cidr, s string) {
		_, network, err := net.ParseCIDR(cidr)
		prefix, mine := compileCIDR(cidr)
		if (err == nil) != (mine == nil) {
			t.Fatalf("%q: %v, and net says %v", cidr, mine, err)
		}
		ip := net.ParseIP(s)
		addr, ok := parseAddress(s)
		if ok != (ip != nil) {
			t.Fatalf("%q is an address: %v", s, ok)
		}
		if err == nil && ok && network.Contains(ip) != prefix.Contains(addr) {
			t.Errorf("%s in %s: %v", s, cidr, prefix.Contains(addr))
		}
	})
}

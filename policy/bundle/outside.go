package bundle

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/internal/nearmiss"
)

// Builtins that look outside of the input, which data.writ.outside can admit.
const (
	HTTPSend   = "http.send"
	LookupIP   = "net.lookup_ip_addr"
	OPARuntime = "opa.runtime"
)

// OutsideBuiltins are all of them.
func OutsideBuiltins() []string { return []string{HTTPSend, LookupIP, OPARuntime} }

// Bounds of what data.writ.outside can admit.
const (
	maxOutsideHosts   = 64
	maxOutsideEnv     = 64
	maxOutsideTimeout = 10 * time.Second
	maxOutsideBytes   = 1 << 20
	maxOutsideCalls   = 16
)

// What holds where data.writ.outside does not say.
const (
	defaultOutsideTimeout = 200 * time.Millisecond
	defaultOutsideBytes   = 64 << 10
	defaultOutsideCalls   = 2
)

// Outside is data.writ.outside: which builtins may look outside of the input,
// and how far. What is nil may not be used.
type Outside struct {
	HTTP    *OutsideHTTP
	Lookup  *OutsideLookup
	Runtime *OutsideRuntime
}

// OutsideHTTP bounds http.send.
type OutsideHTTP struct {
	Origins []Origin
	// Timeout of one call, redirects included.
	Timeout time.Duration
	// MaxBytes of the body of an answer.
	MaxBytes int64
	// MaxCalls is how many requests one decision may send, redirects included.
	MaxCalls int
}

// OutsideLookup bounds net.lookup_ip_addr.
type OutsideLookup struct {
	Hosts    []HostPattern
	Timeout  time.Duration
	MaxCalls int
}

// OutsideRuntime bounds opa.runtime.
type OutsideRuntime struct {
	// Env names the environment variables that it shows.
	Env []string
}

// Builtins are the names of those that may be used.
func (o Outside) Builtins() []string {
	var names []string
	for name, admitted := range map[string]bool{HTTPSend: o.HTTP != nil, LookupIP: o.Lookup != nil, OPARuntime: o.Runtime != nil} {
		if admitted {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// of is the part of o that is about the named builtins.
func (o Outside) of(builtins []string) Outside {
	if !slices.Contains(builtins, HTTPSend) {
		o.HTTP = nil
	}
	if !slices.Contains(builtins, LookupIP) {
		o.Lookup = nil
	}
	if !slices.Contains(builtins, OPARuntime) {
		o.Runtime = nil
	}
	return o
}

// looksOutside are the builtins of OutsideBuiltins that a module names, in a
// call or in a `with`.
func looksOutside(m *ast.Module) []string {
	var names []string
	ast.WalkRefs(m, func(ref ast.Ref) bool {
		if name := ref.String(); slices.Contains(OutsideBuiltins(), name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
		return false
	})
	return names
}

// HostPattern is the name of a host, its address, or all names below one.
type HostPattern struct {
	// Name is in lower case, without a dot at the end; empty for an address.
	Name string
	// Below admits the names below Name, and not Name itself.
	Below bool
	Addr  netip.Addr
}

// Admits reports whether host, a name or an address, is meant.
func (p HostPattern) Admits(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return p.Addr.IsValid() && addr.Unmap() == p.Addr
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if p.Below {
		return strings.HasSuffix(host, "."+p.Name)
	}
	return p.Name != "" && host == p.Name
}

// Origin is whom http.send may ask: hosts by one scheme and port.
type Origin struct {
	Scheme string
	Host   HostPattern
	Port   string
}

// Admits reports whether an URL leads to the origin.
func (o Origin) Admits(u *url.URL) bool {
	return u.Scheme == o.Scheme && portOf(u) == o.Port && o.Host.Admits(u.Hostname())
}

func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	return defaultPorts[u.Scheme]
}

var defaultPorts = map[string]string{"https": "443", "http": "80"}

// parseOrigin reads [scheme://]host[:port]. Without a scheme it is https.
func parseOrigin(text string) (Origin, error) {
	full := text
	if !strings.Contains(text, "://") {
		full = "https://" + text
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || defaultPorts[u.Scheme] == "" || u.Scheme+"://"+u.Host != full || strings.HasSuffix(u.Host, ":") {
		return Origin{}, fmt.Errorf("%q: want a host such as risk.example.org, with a port where it is not 443, and http:// before it for a connection that is not encrypted", text)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return Origin{}, fmt.Errorf("%q: there is no port %s", text, port)
		}
	}
	host, err := parseHost(u.Hostname())
	return Origin{Scheme: u.Scheme, Host: host, Port: portOf(u)}, err
}

var hostName = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// parseHost reads a name, an address, or "*." and a name.
func parseHost(text string) (HostPattern, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		if addr.Zone() != "" {
			return HostPattern{}, fmt.Errorf("%q: an address without a zone is wanted", text)
		}
		return HostPattern{Addr: addr.Unmap()}, nil
	}
	name, below := strings.CutPrefix(text, "*.")
	switch {
	case len(name) > 253 || !hostName.MatchString(name):
		return HostPattern{}, fmt.Errorf(`%q: want a name of host in lower case, "*." and a name, or an address`, text)
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		return HostPattern{}, fmt.Errorf("%q: the machine itself is admitted by its address only: 127.0.0.1, or ::1 in brackets", text)
	case below && !strings.Contains(name, "."):
		return HostPattern{}, fmt.Errorf("%q: that is a whole top level", text)
	}
	return HostPattern{Name: name, Below: below}, nil
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// outside reads one entry of data.writ.outside.
func (r *catalogueReader) outside(o *Outside, name string, entry map[string]any) {
	at := func(key string) []string { return []string{"outside", name, key} }
	switch name {
	case HTTPSend:
		r.known(at, entry, "hosts", "timeout", "max_bytes", "max_calls")
		o.HTTP = &OutsideHTTP{
			Timeout:  r.duration(at("timeout"), entry, defaultOutsideTimeout, maxOutsideTimeout),
			MaxBytes: r.count(at("max_bytes"), entry, defaultOutsideBytes, maxOutsideBytes),
			MaxCalls: int(r.count(at("max_calls"), entry, defaultOutsideCalls, maxOutsideCalls)),
		}
		for _, text := range r.few(at("hosts"), entry["hosts"], maxOutsideHosts) {
			origin, err := parseOrigin(text)
			if err != nil {
				r.fail(at("hosts"), "%v", err)
			}
			o.HTTP.Origins = append(o.HTTP.Origins, origin)
		}
	case LookupIP:
		r.known(at, entry, "hosts", "timeout", "max_calls")
		o.Lookup = &OutsideLookup{
			Timeout:  r.duration(at("timeout"), entry, defaultOutsideTimeout, maxOutsideTimeout),
			MaxCalls: int(r.count(at("max_calls"), entry, defaultOutsideCalls, maxOutsideCalls)),
		}
		for _, text := range r.few(at("hosts"), entry["hosts"], maxOutsideHosts) {
			host, err := parseHost(text)
			if err != nil {
				r.fail(at("hosts"), "%v", err)
			}
			o.Lookup.Hosts = append(o.Lookup.Hosts, host)
		}
	case OPARuntime:
		r.known(at, entry, "env")
		o.Runtime = &OutsideRuntime{}
		if value, given := entry["env"]; given {
			o.Runtime.Env = r.few(at("env"), value, maxOutsideEnv)
		}
		for _, name := range o.Runtime.Env {
			switch {
			case !envName.MatchString(name):
				r.fail(at("env"), "%q is not the name of an environment variable", name)
			case strings.HasPrefix(name, "WRIT_"):
				r.fail(at("env"), "%s: what configures Writ is not for policy", name)
			}
		}
	default:
		r.fail([]string{"outside", name}, "there is %s only%s", strings.Join(OutsideBuiltins(), ", "), nearmiss.Hint(name, OutsideBuiltins()))
	}
}

// few is texts, each once, and not too many.
func (r *catalogueReader) few(at []string, value any, limit int) []string {
	list := r.texts(at, value)
	if len(list) > limit {
		r.fail(at, "more than %d", limit)
		return nil
	}
	for i, text := range list {
		if slices.Contains(list[:i], text) {
			r.fail(at, "%q is there twice", text)
		}
	}
	return list
}

func (r *catalogueReader) duration(at []string, entry map[string]any, fallback, limit time.Duration) time.Duration {
	value, given := entry[at[len(at)-1]]
	if !given {
		return fallback
	}
	text, _ := value.(string)
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > limit {
		r.fail(at, "want a time such as \"200ms\", at most %v, got %v", limit, value)
	}
	return d
}

func (r *catalogueReader) count(at []string, entry map[string]any, fallback, limit int64) int64 {
	value, given := entry[at[len(at)-1]]
	if !given {
		return fallback
	}
	number, _ := value.(json.Number)
	n, err := number.Int64()
	if err != nil || n < 1 || n > limit {
		r.fail(at, "want a whole number from 1 to %d, got %v", limit, value)
	}
	return n
}

package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http/httpguts"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/internal/strictyaml"
)

// Names appear in SPIFFE IDs, in paths of files and in unix:path selectors.
var (
	serviceName  = regexp.MustCompile(`^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$`)
	upstreamWord = regexp.MustCompile(`\{upstream\.([^{}]*)\}`)
	grpcPath     = regexp.MustCompile(`^/[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*$`)
)

type checker struct {
	*Mesh
	pos   *strictyaml.Position
	names []string
	// ports and ids say which key took a port or an ID first.
	ports map[int]string
	ids   map[spiffeid.ID]string
	errs  []error
}

func (c *checker) fail(key, format string, args ...any) {
	c.errs = append(c.errs, c.pos.Errorf(key, format, args...))
}

// complete fills in what was left out and checks what only the whole file can
// tell. It reports every error it finds.
func (m *Mesh) complete(pos *strictyaml.Position, dir string) error {
	c := &checker{Mesh: m, pos: pos, ports: map[int]string{}, ids: map[spiffeid.ID]string{}}
	var err error
	switch m.td, err = spiffeid.TrustDomainFromString(m.TrustDomain); {
	case m.TrustDomain == "":
		c.fail("trust_domain", "missing: give one such as example.org")
	case err != nil:
		c.fail("trust_domain", "%v", err)
	case m.td.Name() != m.TrustDomain:
		c.fail("trust_domain", "want the name alone: %q", m.td.Name())
	}
	if m.CATTL != 0 && m.CATTL < max(MinCATTL, 2*m.SVIDTTL) {
		c.fail("ca_ttl", "%s is shorter than %s: no SVID outlives its authority", m.CATTL, max(MinCATTL, 2*m.SVIDTTL))
	}
	if m.SVIDTTL != 0 && m.SVIDTTL < MinTTL {
		c.fail("svid_ttl", "%s is shorter than %s", m.SVIDTTL, MinTTL)
	}
	if m.Policy == "" {
		c.fail("policy", "missing: name the directory of the policy sources")
	} else {
		m.Policy = within(dir, m.Policy)
	}
	for i, h := range m.Record.Headers {
		if h != strings.ToLower(h) || !httpguts.ValidHeaderFieldName(h) {
			c.fail(fmt.Sprintf("record.headers[%d]", i), "%q is not a header name in lower case", h)
		}
	}
	if len(m.Services) == 0 {
		c.fail("services", "missing: a mesh has at least one service")
	}
	for i := range m.Services {
		c.name(i)
	}
	for i := range m.Services {
		c.service(i, dir)
	}
	for i := range m.Requests {
		c.request(i)
	}
	return errors.Join(c.errs...)
}

func (c *checker) name(i int) {
	key := fmt.Sprintf("services[%d].name", i)
	name := c.Services[i].Name
	switch {
	case name == "":
		c.fail(key, "missing")
	case !serviceName.MatchString(name):
		c.fail(key, "%q: want lower-case letters, digits, '-', '_' and '.', a letter or digit at both ends, at most 63", name)
	case name == NoCaller:
		c.fail(key, "%q means a caller without an SVID", name)
	case name == "writd" || name == "writ-agent":
		c.fail(key, "%q is a program of Writ itself", name)
	case slices.Contains(c.names, name):
		c.fail(key, "%q is the name of two services", name)
	default:
		c.names = append(c.names, name)
	}
}

func (c *checker) service(i int, dir string) {
	s := &c.Services[i]
	key := fmt.Sprintf("services[%d]", i)
	switch {
	case len(s.Command) > 0 && s.Address != "":
		c.fail(key+".address", "command is given too: a service is either run here or found at an address")
	case len(s.Command) > 0:
		c.command(key, s)
	case s.Address != "":
		c.address(key, s)
		c.idle(key, "dir", s.Dir != "", "only a command has one")
		c.idle(key, "env", s.Env != nil, "only a command has one")
		c.idle(key, "port", s.Port != 0, "the address says it")
	default:
		c.client(key, s)
	}
	s.Dir = within(dir, s.Dir)
	c.port(key+".port", s.Port)
	c.defaults(key, s)
	c.identity(key, s)
	c.upstreams(key, s)
}

func (c *checker) command(key string, s *Service) {
	if s.Command[0] == "" {
		c.fail(key+".command[0]", "empty: name a program")
	}
	for j, arg := range s.Command {
		c.words(fmt.Sprintf("%s.command[%d]", key, j), s, arg)
	}
	for name, value := range s.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			c.fail(key+".env."+name, "%q cannot name an environment variable", name)
		}
		c.words(key+".env."+name, s, value)
	}
}

// words checks the words in braces; braces may also be plain text, as in JSON.
func (c *checker) words(key string, s *Service, text string) {
	if strings.ContainsRune(text, 0) {
		c.fail(key, "holds a NUL")
	}
	for _, m := range upstreamWord.FindAllStringSubmatch(text, -1) {
		if s.Upstream(m[1]) == nil {
			c.fail(key, "%s: %q is not an upstream of %q%s", m[0], m[1], s.Name, nearmiss.Hint(m[1], upstreamNames(s)))
		}
	}
}

func (c *checker) address(key string, s *Service) {
	host, port, err := net.SplitHostPort(s.Address)
	n, convErr := strconv.ParseUint(port, 10, 16)
	if err != nil || convErr != nil || n == 0 || host == "" {
		c.fail(key+".address", "%q: want host:port", s.Address)
		return
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		c.port(key+".address", int(n))
	}
}

// client checks a service that nobody can call.
func (c *checker) client(key string, s *Service) {
	if len(s.Upstreams) == 0 {
		c.fail(key, "%q neither runs (command), nor listens (address), nor calls anyone (upstreams)", s.Name)
		return
	}
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"port", s.Port != 0}, {"protocol", s.Protocol != ""}, {"mode", s.Mode != ""},
		{"observe_until", !s.ObserveUntil.IsZero()}, {"path", s.Path != ""},
		{"dir", s.Dir != ""}, {"env", s.Env != nil},
	} {
		c.idle(key, f.name, f.given, "a service with neither command nor address only calls others")
	}
}

// idle refuses a key that would have no effect.
func (c *checker) idle(key, name string, given bool, why string) {
	if given {
		c.fail(key+"."+name, "has no effect here: %s", why)
	}
}

func (c *checker) port(key string, port int) {
	if port == 0 {
		return
	}
	if port < 1 || port > 65535 {
		c.fail(key, "%d is not a port (1 to 65535)", port)
		return
	}
	if taken, ok := c.ports[port]; ok {
		c.fail(key, "port %d is also %s", port, taken)
		return
	}
	c.ports[port] = key
}

func (c *checker) defaults(key string, s *Service) {
	if s.Listens() {
		s.Protocol = or(s.Protocol, HTTP)
		s.Mode = or(s.Mode, Enforce)
		s.Path = or(s.Path, "strict")
	}
	switch {
	case s.Mode == Observe && s.ObserveUntil.IsZero():
		c.fail(key+".mode", "observe needs observe_until: a date such as 2030-01-31 at which it ends by itself")
	case s.Mode == Enforce && !s.ObserveUntil.IsZero():
		c.fail(key+".observe_until", "has no effect here: mode is enforce")
	}
}

func (c *checker) identity(key string, s *Service) {
	if c.td.IsZero() || !serviceName.MatchString(s.Name) {
		return // reported already
	}
	var err error
	if s.SPIFFEID == "" {
		s.id, err = spiffeid.FromSegments(c.td, "svc", s.Name)
	} else {
		s.id, err = spiffeid.FromString(s.SPIFFEID)
	}
	switch taken, twice := c.ids[s.id]; {
	case err != nil:
		c.fail(key+".spiffe_id", "%v", err)
	case !s.id.MemberOf(c.td):
		c.fail(key+".spiffe_id", "%q is not in trust domain %q", s.SPIFFEID, c.td.Name())
	case s.id.Path() == "":
		c.fail(key+".spiffe_id", "%q names the trust domain, not a workload", s.SPIFFEID)
	case twice:
		c.fail(key+".spiffe_id", "%q is the ID of %s too", s.id, taken)
	default:
		c.ids[s.id] = s.Name
		s.SPIFFEID = s.id.String()
	}
}

func (c *checker) upstreams(key string, s *Service) {
	seen := map[string]bool{}
	for j, u := range s.Upstreams {
		ukey := fmt.Sprintf("%s.upstreams[%d]", key, j)
		switch {
		case u.Service == "":
			c.fail(ukey, "service is missing")
		case seen[u.Service]:
			c.fail(ukey+".service", "%q is listed twice", u.Service)
		default:
			c.callee(ukey+".service", u.Service)
		}
		seen[u.Service] = true
		c.port(ukey+".port", u.Port)
	}
}

// callee checks that name is a service which can be called.
func (c *checker) callee(key, name string) *Service {
	s := c.Service(name)
	switch {
	case s == nil:
		c.fail(key, "no service is called %q%s", name, nearmiss.Hint(name, c.names))
		return nil
	case !s.Listens():
		c.fail(key, "%q has neither command nor address, so nobody can call it", name)
		return nil
	}
	return s
}

func upstreamNames(s *Service) []string {
	names := make([]string, len(s.Upstreams))
	for i, u := range s.Upstreams {
		names[i] = u.Service
	}
	return names
}

// within resolves path against the directory of the mesh file.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

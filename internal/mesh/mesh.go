// Package mesh reads the file that describes a mesh on one machine: which
// services there are, who may be called from where, where the policy lies, and
// which requests to drive through it.
//
// A Mesh that Load returned is complete and consistent, but for ports left
// out: these are 0, and whoever runs the mesh chooses them.
package mesh

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/strictyaml"
)

// Mesh is the content of a mesh file.
type Mesh struct {
	// Trust domain of all services, as in example.org.
	TrustDomain string `yaml:"trust_domain"`
	// Life of the services' X509-SVIDs, at least 10s; writd's default when left
	// out.
	SVIDTTL time.Duration `yaml:"svid_ttl"`
	// Life of a signing authority, at least twice svid_ttl; writd's default when
	// left out.
	CATTL time.Duration `yaml:"ca_ttl"`
	// Directory of the policy sources, relative to this file.
	Policy string `yaml:"policy"`
	// Let policy look outside of its input, as far as its data.writ.outside says.
	AllowOutside bool `yaml:"allow_outside"`
	// What may be recorded of a request beyond its head line.
	Record Record `yaml:"record"`
	// The services.
	Services []Service `yaml:"services"`
	// Requests to drive once the mesh is up.
	Requests []Request `yaml:"requests"`

	td spiffeid.TrustDomain
}

// Record names what may be recorded when policy reads it.
type Record struct {
	// Request headers, lower case. A trailing * is a prefix.
	Headers []string `yaml:"headers"`
	// Query parameters.
	Query []string `yaml:"query"`
}

// Service is one workload. With neither command nor address it only calls
// others: a client such as curl, or a person.
type Service struct {
	// Name in the mesh, in the catalogue and in policy.
	Name string `yaml:"name"`
	// Program to run, and its arguments. {port} stands for the port to listen
	// on, {upstream.NAME} for the address at which service NAME is found,
	// {dir} for the service's directory, {policyctl} for this policyctl.
	Command []string `yaml:"command"`
	// Address of a program that already listens, host:port.
	Address string `yaml:"address"`
	// Port on loopback that the command listens on; chosen when left out. The
	// command finds it in the environment as PORT.
	Port int `yaml:"port"`
	// What the program speaks: http (HTTP/1.1) or grpc (HTTP/2 without TLS).
	Protocol string `yaml:"protocol" enum:"http|grpc"`
	// What happens to a denied request: enforce stops it; observe lets it pass
	// and records it, until the date in observe_until.
	Mode string `yaml:"mode" enum:"enforce|observe"`
	// Date at which observing ends by itself.
	ObserveUntil time.Time `yaml:"observe_until"`
	// Whether // is refused in paths.
	Path string `yaml:"path" enum:"strict|allow-double-slash"`
	// SPIFFE ID; spiffe://<trust domain>/svc/<name> when left out.
	SPIFFEID string `yaml:"spiffe_id"`
	// Services that this one calls.
	Upstreams []Upstream `yaml:"upstreams"`
	// Environment of the command, beside its own. The same words in braces
	// are replaced as in command.
	Env map[string]string `yaml:"env"`
	// Working directory of the command, relative to this file; the file's own
	// directory when left out.
	Dir string `yaml:"dir"`

	id spiffeid.ID
}

// Upstream is a service that another one calls.
type Upstream struct {
	// Name of the service called.
	Service string `yaml:"service"`
	// Loopback port at which the caller finds it; chosen when left out.
	Port int `yaml:"port"`
}

// Request is one request to drive.
type Request struct {
	// What the request shows, for the reader.
	Name string `yaml:"name"`
	// Service that calls, or none: a caller without an SVID.
	Caller string `yaml:"caller"`
	// Service that is called. Its protocol is the request's.
	Target string `yaml:"target"`
	// HTTP method; GET when left out. A gRPC call has none.
	Method string `yaml:"method"`
	// Path with query, or /package.Service/Method.
	Path string `yaml:"path"`
	// Request headers, or gRPC metadata.
	Headers map[string]string `yaml:"headers"`
	// Verdict on record: allow, deny, refused (before any decision) or error.
	Expected string `yaml:"expected" enum:"allow|deny|refused|error"`
}

// Words of the file.
const (
	HTTP      = "http"
	GRPC      = "grpc"
	Enforce   = "enforce"
	Observe   = "observe"
	NoCaller  = "none"
	MinTTL    = 10 * time.Second
	MinCATTL  = 30 * time.Second
	Allowed   = "allow"
	Denied    = "deny"
	Refused   = "refused"
	Erroneous = "error"
)

// Load reads the mesh file at path. Policy and Dir come back as paths that
// open from the current directory.
func Load(path string) (*Mesh, error) {
	m := &Mesh{}
	pos, err := strictyaml.Load(path, m)
	if err != nil {
		return nil, err
	}
	if err := m.complete(pos, filepath.Dir(path)); err != nil {
		return nil, err
	}
	return m, nil
}

// Parse reads a mesh file from data; name is its path, which relative paths
// and errors refer to.
func Parse(name string, data []byte) (*Mesh, error) {
	m := &Mesh{}
	pos, err := strictyaml.Decode(name, data, m)
	if err != nil {
		return nil, err
	}
	if err := m.complete(pos, filepath.Dir(name)); err != nil {
		return nil, err
	}
	return m, nil
}

// Domain is the trust domain.
func (m *Mesh) Domain() spiffeid.TrustDomain { return m.td }

// Service returns the service called name, nil when there is none.
func (m *Mesh) Service(name string) *Service {
	i := slices.IndexFunc(m.Services, func(s Service) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &m.Services[i]
}

// ID is the service's SPIFFE ID.
func (s *Service) ID() spiffeid.ID { return s.id }

// Listens reports whether the service can be called. One that does not is a
// client only.
func (s *Service) Listens() bool { return len(s.Command) > 0 || s.Address != "" }

// App is the address of the program, host:port, with the port it listens on;
// empty for a client.
func (s *Service) App() string {
	switch {
	case s.Address != "":
		return s.Address
	case len(s.Command) > 0:
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))
	}
	return ""
}

// Upstream returns the upstream called name, nil when there is none.
func (s *Service) Upstream(name string) *Upstream {
	i := slices.IndexFunc(s.Upstreams, func(u Upstream) bool { return u.Service == name })
	if i < 0 {
		return nil
	}
	return &s.Upstreams[i]
}

// ModeAt is the mode in force at t: observing ends at the date given. It is
// empty for a service that nobody can call.
func (s *Service) ModeAt(t time.Time) string {
	if s.Mode == Observe && !t.Before(s.ObserveUntil) {
		return Enforce
	}
	return s.Mode
}

// Expand is the command and its environment with the words in braces replaced.
// All ports must be chosen. The environment holds PORT, and for each upstream
// WRIT_UPSTREAM_<NAME>, the name in capitals with _ for - and dots.
func (s *Service) Expand(policyctl string) (argv, env []string) {
	words := []string{
		"{port}", strconv.Itoa(s.Port),
		"{dir}", s.Dir,
		"{policyctl}", policyctl,
	}
	env = append(env, fmt.Sprintf("PORT=%d", s.Port))
	for _, u := range s.Upstreams {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(u.Port))
		words = append(words, "{upstream."+u.Service+"}", addr)
		env = append(env, envName(u.Service)+"="+addr)
	}
	r := strings.NewReplacer(words...)
	for _, arg := range s.Command {
		argv = append(argv, r.Replace(arg))
	}
	for name, value := range s.Env {
		env = append(env, name+"="+r.Replace(value))
	}
	slices.Sort(env)
	return argv, env
}

func envName(service string) string {
	return "WRIT_UPSTREAM_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(service))
}

package proxy

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/proxy/admin"
	"github.com/writ-dev/writ/proxy/upstream"
)

// maxUnixPath is what a Unix socket address holds on Linux (unix(7)).
const maxUnixPath = 107

// Validate reports everything that is wrong with the configuration, joined,
// and fills in what has a default that depends on other keys.
func (c *Config) Validate(at func(key, format string, args ...any) error) error {
	v := &validator{at: at}
	td := v.trustDomain(c.TrustDomain)
	v.need("service", c.Service)
	v.need("workload_api", c.WorkloadAPI)
	if c.WorkloadAPI != "" {
		if err := workloadapi.ValidateAddress(c.WorkloadAPI); err != nil {
			v.fail("workload_api", "want unix:///absolute/path or tcp://IP:port: %v", err)
		}
	}
	if c.Inbound != nil {
		v.inbound(c.Inbound)
	}
	v.upstreams(c.Upstreams)
	if c.Inbound == nil && len(c.Upstreams) == 0 {
		v.fail("inbound", "neither inbound nor upstreams: this sidecar would do nothing")
	}
	v.control(&c.Control, td)
	if len(c.Policy.Keys) == 0 && c.Inbound != nil {
		v.fail("policy.keys", "missing: without a decision key no policy can be trusted")
	}
	if c.Inbound != nil {
		v.need("policy.dir", c.Policy.Dir)
	}
	v.publishers(&c.Policy)
	v.atLeast("policy.max_age", int64(c.Policy.MaxAge), 0)
	v.atLeast("revocation.max_age", int64(c.Revocation.MaxAge), 0)
	if c.Revocation.MaxAge == 0 && c.Revocation.MaxAgeAction == "deny" {
		v.fail("revocation.max_age", "0 is never: with max_age_action deny say from when")
	}
	v.need("audit.dir", c.Audit.Dir)
	v.atLeast("audit.max_bytes", c.Audit.MaxBytes, spool.MinBytes)
	for i, name := range c.Audit.Headers {
		if name != strings.ToLower(name) || strings.Contains(strings.TrimSuffix(name, "*"), "*") {
			v.fail(fmt.Sprintf("audit.headers[%d]", i), "%q: want a lower-case name, or a prefix that ends in *", name)
		}
	}
	if err := admin.Loopback(c.Admin); err != nil {
		v.fail("admin", "%v", err)
	}
	v.atLeast("drain", int64(c.Drain), 0)
	return errors.Join(v.errs...)
}

func (v *validator) publishers(p *Policy) {
	switch p.Trust {
	case TrustPublisher:
		if len(p.Publishers) == 0 {
			v.fail("policy.publishers", "missing: trust publisher takes the publishers to trust")
		}
		if len(p.Keys) == 0 {
			v.fail("policy.keys", "missing: the decision key says in which order revisions come")
		}
	case TrustControlPlane, "":
		if len(p.Publishers) > 0 {
			v.fail("policy.publishers", "is for trust: publisher")
		}
	default:
		v.fail("policy.trust", "want control-plane or publisher, got %q", p.Trust)
	}
	for i, pub := range p.Publishers {
		if len(pub.Keys) == 0 {
			v.fail(fmt.Sprintf("policy.publishers[%d].keys", i), "missing: name the files with the public keys of publisher %q", pub.Name)
		}
	}
}

type validator struct {
	at   func(key, format string, args ...any) error
	errs []error
}

func (v *validator) fail(key, format string, args ...any) {
	v.errs = append(v.errs, v.at(key, format, args...))
}

func (v *validator) need(key, value string) {
	if value == "" {
		v.fail(key, "missing")
	}
}

func (v *validator) atLeast(key string, value, least int64) {
	if value < least {
		v.fail(key, "must be at least %d", least)
	}
}

func (v *validator) trustDomain(name string) spiffeid.TrustDomain {
	if name == "" {
		v.fail("trust_domain", "missing")
		return spiffeid.TrustDomain{}
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		v.fail("trust_domain", "%q: %v", name, err)
	} else if td.Name() != name {
		v.fail("trust_domain", "want the bare name, as in %s", td.Name())
	}
	return td
}

func (v *validator) inbound(in *Inbound) {
	v.need("inbound.listen", in.Listen)
	if in.Listen != "" {
		v.hostPort("inbound.listen", in.Listen)
	}
	v.need("inbound.app", in.App)
	switch path, ok := upstream.UnixPath(in.App); {
	case in.App == "":
	case ok:
		v.socket("inbound.app", path)
	case strings.HasPrefix(in.App, "unix:"):
		v.fail("inbound.app", "%q: want unix:///absolute/path", in.App)
	default:
		v.hostPort("inbound.app", in.App)
	}
	if in.Protocol == "" {
		in.Protocol = "http"
	}
	if in.Underscores == "" {
		in.Underscores = "strip"
	}
	v.atLeast("inbound.max_connection_age", int64(in.MaxConnectionAge), 0)
	v.atLeast("inbound.max_head_bytes", int64(in.MaxHeadBytes), 0)
}

func (v *validator) upstreams(list []Upstream) {
	var names, listens []string
	for i := range list {
		u, key := &list[i], fmt.Sprintf("upstreams[%d]", i)
		v.need(key+".name", u.Name)
		v.need(key+".listen", u.Listen)
		v.need(key+".address", u.Address)
		v.need(key+".spiffe_id", u.SPIFFEID)
		if u.Name != "" && slices.Contains(names, u.Name) {
			v.fail(key+".name", "%q is there already", u.Name)
		}
		if u.Listen != "" && !strings.HasSuffix(u.Listen, ":0") && slices.Contains(listens, u.Listen) {
			v.fail(key+".listen", "%s is taken by another upstream", u.Listen)
		}
		names, listens = append(names, u.Name), append(listens, u.Listen)
		if path, ok := upstream.UnixPath(u.Listen); ok {
			v.socket(key+".listen", path)
		} else if u.Listen != "" {
			if err := admin.Loopback(u.Listen); err != nil {
				v.fail(key+".listen", "want a loopback ip:port, or unix:///absolute/path: %v", err)
			}
		}
		if u.Address != "" {
			v.hostPort(key+".address", u.Address)
		}
		if u.SPIFFEID != "" {
			if id, err := spiffeid.FromString(u.SPIFFEID); err != nil {
				v.fail(key+".spiffe_id", "%q: %v", u.SPIFFEID, err)
			} else if id.Path() == "" {
				v.fail(key+".spiffe_id", "%s names a trust domain, not a workload", id)
			}
		}
		if u.Protocol == "" {
			u.Protocol = "http"
		}
		for j, uid := range u.AllowUIDs {
			v.atLeast(fmt.Sprintf("%s.allow_uids[%d]", key, j), int64(uid), 0)
		}
	}
}

func (v *validator) control(c *Control, td spiffeid.TrustDomain) {
	v.need("control.address", c.Address)
	if c.Address != "" {
		v.hostPort("control.address", c.Address)
	}
	switch {
	case c.SPIFFEID != "":
		if _, err := spiffeid.FromString(c.SPIFFEID); err != nil {
			v.fail("control.spiffe_id", "%q: %v", c.SPIFFEID, err)
		}
	case !td.IsZero():
		c.SPIFFEID = identity.ServerID(td).String()
	}
}

func (v *validator) hostPort(key, value string) {
	_, port, err := net.SplitHostPort(value)
	if err != nil {
		v.fail(key, "%q: want host:port", value)
		return
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		v.fail(key, "%q: port %q is not a number up to 65535", value, port)
	} else if n == 0 && key != "inbound.listen" {
		v.fail(key, "%q: port 0 leads nowhere", value)
	}
}

func (v *validator) socket(key, path string) {
	switch {
	case filepath.Clean(path) != path:
		v.fail(key, "%q: want a clean absolute path", path)
	case len(path) > maxUnixPath && key == "inbound.app":
		v.fail(key, "path of %d bytes: a Unix socket address holds %d", len(path), maxUnixPath)
	}
}

// Package writdconf is the configuration file of writd.
package writdconf

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/tracing"
)

// Config is the configuration file of writd.
type Config struct {
	// Trust domain that this control plane names, as in example.org.
	TrustDomain string `yaml:"trust_domain"`
	// Directory of everything that must survive: database, keys, ledger.
	// Mode 0700.
	DataDir string `yaml:"data_dir"`
	// PostgreSQL in place of the SQLite database in the data directory.
	Database *Database `yaml:"database"`
	// Name of this control plane among those that share a PostgreSQL database;
	// the host's name when left out. It stays what it is: authorities hang on it.
	Replica string `yaml:"replica"`
	// Roles to run: issuer, decision, audit. All when left out.
	Roles []string `yaml:"roles" enum:"issuer|decision|audit"`
	// Address of the issuer listener (SPIRE's server API), host:port.
	IssuerListen string `yaml:"issuer_listen"`
	// Address of the control listener (policy down, audit up; mTLS), host:port.
	ControlListen string `yaml:"control_listen"`
	// Path of the admin socket; run/admin.sock in the data directory when left
	// out.
	AdminSocket string `yaml:"admin_socket"`
	// Address of the admin listener (administration over the network; mTLS),
	// host:port; empty is off. Who may call what is said by admin_policy.
	AdminListen string `yaml:"admin_listen"`
	// Directory of the admin policy: Rego of package admin, with tests. With
	// it, SVIDs of entries marked admin may call only what it allows, too. The
	// admin socket is not subject to it.
	AdminPolicy string `yaml:"admin_policy"`
	// Loopback address of metrics, /healthz and /readyz; empty is off.
	Admin string `yaml:"admin"`
	// SPIFFE Workload API socket that gives this control plane its SVID when
	// it does not run the issuer role.
	WorkloadAPI string `yaml:"workload_api"`
	// Life of a signing authority.
	CATTL time.Duration `yaml:"ca_ttl"`
	// Type of the keys of new signing authorities: ec-p256, ec-p384, rsa-2048,
	// rsa-4096; ec-p256 when left out.
	CAKeyType string `yaml:"ca_key_type" enum:"ec-p256|ec-p384|rsa-2048|rsa-4096"`
	// Type of the keys of new JWT authorities, which chooses the algorithm of
	// JWT-SVIDs: ES256, ES384, RS256. As ca_key_type when left out.
	JWTKeyType string `yaml:"jwt_key_type" enum:"ec-p256|ec-p384|rsa-2048|rsa-4096"`
	// Where the keys of signing authorities are; files in the data directory
	// when left out.
	Keys *Keys `yaml:"keys"`
	// Who signs the X.509 authorities; they sign themselves when left out.
	Upstream *Upstream `yaml:"upstream"`
	// How long a CRL is good, for Envoys that get them; at least twice svid_ttl. A
	// new one is signed at half of it: of an issuer, or a replica, that is away for
	// longer they refuse all that it signed. 24h, or twice svid_ttl if that is more,
	// when left out.
	CRLTTL time.Duration `yaml:"crl_ttl"`
	// Life of an X509-SVID whose entry sets none; at least 10s.
	SVIDTTL time.Duration `yaml:"svid_ttl"`
	// Life of a JWT-SVID whose entry sets none.
	JWTTTL time.Duration `yaml:"jwt_ttl"`
	// How nodes may prove themselves; by join token when left out.
	Attestors Attestors `yaml:"attestors"`
	// Attestation attempts per second that one address may make.
	AttestRate int `yaml:"attest_rate"`
	// SVIDs per second that one agent may have signed; 0 is no limit.
	SignRate int `yaml:"sign_rate"`
	// Bundle endpoint from which other trust domains get our trust bundle.
	Federation *Federation `yaml:"federation"`
	// Files with the authorities (PEM) that prove bundle endpoints of profile
	// https_web, by the trust domain whose bundle is fetched there, in place of the
	// system's roots. They are read at each fetch.
	FederationCAFiles map[string]string `yaml:"federation_ca_files"`
	// OpenID Connect discovery of the keys that sign JWT-SVIDs.
	OIDC *OIDC `yaml:"oidc"`
	// Files with the public keys (PEM) that may push all of policy: one
	// publisher, named default. The short form of publishers.
	PublisherKeys []string `yaml:"publisher_keys"`
	// Publishers of policy, each with what it owns. Grants do not overlap.
	Publishers []Publisher `yaml:"publishers"`
	// People who may approve proposals of policy.
	Approvers []Approver `yaml:"approvers"`
	// Approvals that each activation takes, by others than its author: 0, 1 or
	// 2. More than 0 makes every change a proposal first.
	Approvals int `yaml:"approvals"`
	// Take policy that no publisher signed. For experiments only.
	AllowUnsignedPolicy bool `yaml:"allow_unsigned_policy"`
	// Bundle server that policy is pulled from, beside what is pushed.
	PolicySource *PolicySource `yaml:"policy_source"`
	// Bytes that the audit ledger may take. At the cap it stops acknowledging,
	// so that spools hold what they have; nothing is ever deleted.
	AuditMaxBytes int64 `yaml:"audit_max_bytes"`
	// One in this many recorded decisions is decided again by OPA's evaluator
	// and compared, at most 50 per second; the first difference raises an alarm
	// and moves the policy to the evaluator. 0 is none. Needs the roles
	// decision and audit.
	RecheckSample int `yaml:"recheck_sample"`
	// Address of the control listener of a writd with the audit role, which
	// takes the events of this one when it does not run that role itself.
	Collector string `yaml:"collector"`
	// Time that open calls get at shutdown.
	Drain time.Duration `yaml:"drain"`
	// Traces of what this control plane does.
	Tracing *tracing.Config `yaml:"tracing"`

	// AdoptEntries is a flag only, since it is for one start.
	AdoptEntries string `yaml:"-"`
}

// PolicySource is an OPA bundle behind an URL. It is signed by a publisher, and
// taken like a push.
type PolicySource struct {
	// URL of the bundle: https, or http to a loopback address.
	URL string `yaml:"url"`
	// File with the bearer token to send; read at each request.
	TokenFile string `yaml:"token_file"`
	// File with the authorities (PEM) to trust in place of the system's.
	CAFile string `yaml:"ca_file"`
	// Least time between two requests; 60s when left out.
	MinInterval time.Duration `yaml:"min_interval"`
	// Most time between two requests, also after failures; 120s when left out.
	MaxInterval time.Duration `yaml:"max_interval"`
	// How long the server is asked to hold a request until there is something
	// new, whole seconds; 0 is not at all.
	LongPoll time.Duration `yaml:"long_poll"`
}

func (p *PolicySource) validate(bad func(key, format string, args ...any)) {
	if p.MinInterval == 0 {
		p.MinInterval = 60 * time.Second
	}
	if p.MaxInterval == 0 {
		p.MaxInterval = max(120*time.Second, p.MinInterval)
	}
	u, err := url.Parse(p.URL)
	switch {
	case err != nil:
		bad("policy_source.url", "%v", err)
	case u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(net.JoinHostPort(u.Hostname(), "0"))):
		bad("policy_source.url", "want https (http is for loopback addresses only), got %q", u.Redacted())
	case u.User != nil:
		bad("policy_source.url", "no user or password in an URL: put a token into token_file")
	}
	if p.MinInterval < time.Second {
		bad("policy_source.min_interval", "want at least 1s, got %s", p.MinInterval)
	}
	if p.MaxInterval < p.MinInterval {
		bad("policy_source.max_interval", "want at least min_interval (%s), got %s", p.MinInterval, p.MaxInterval)
	}
	if p.LongPoll < 0 || p.LongPoll > 10*time.Minute || p.LongPoll%time.Second != 0 {
		bad("policy_source.long_poll", "want whole seconds, at most 10m, got %s", p.LongPoll)
	}
}

// Publisher is somebody who may push a part of policy.
type Publisher struct {
	// Name of the publisher, as lists and refusals show it.
	Name string `yaml:"name"`
	// Files with the public keys (PEM) that sign what it pushes.
	Keys []string `yaml:"keys"`
	// Packages that it defines, with what is below them: services.orders,
	// guardrails.internal, shop; "*" is everything there is, data and rules
	// included. Guardrails go to nobody unless they are listed.
	Packages []string `yaml:"packages"`
	// Data that it defines, with what is below: shop.prices,
	// writ.services.orders, writ.break_glass, writ.outside.
	Data []string `yaml:"data"`
	// Services for which it may write YAML rules, beside those of its packages.
	Rules []string `yaml:"rules"`
}

// Approver is a person whose signature counts under a proposal.
type Approver struct {
	// Name of the person, as break-glass entries give it. One key here and at a
	// publisher says that this person signs for that publisher.
	Name string `yaml:"name"`
	// Files with the public keys (PEM) of the person.
	Keys []string `yaml:"keys"`
}

// Default is the configuration before a file or a flag is read.
func Default() Config {
	return Config{
		IssuerListen:  "127.0.0.1:8081",
		ControlListen: "127.0.0.1:8082",
		CATTL:         24 * time.Hour,
		SVIDTTL:       time.Hour,
		JWTTTL:        5 * time.Minute,
		AttestRate:    10,
		SignRate:      500,
		AuditMaxBytes: 10 << 30,
		RecheckSample: 100,
		Drain:         5 * time.Second,
	}
}

// Runs reports whether role is one of those to run.
func (c *Config) Runs(role string) bool {
	if len(c.Roles) == 0 {
		return true
	}
	for _, r := range c.Roles {
		if r == role {
			return true
		}
	}
	return false
}

var replicaName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// Validate finds what cannot work. at makes an error at a key of the file.
func (c *Config) Validate(at func(key, format string, args ...any) error) error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, at(key, format, args...)) }
	if c.TrustDomain == "" {
		bad("trust_domain", "missing: name the trust domain, as in example.org")
	} else if td, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		bad("trust_domain", "%v: want a name like example.org: lower-case letters, digits, '.', '-' and '_', without port or path", err)
	} else if td.Name() != c.TrustDomain {
		bad("trust_domain", "want the name alone, %s, got %q", td.Name(), c.TrustDomain)
	}
	if c.DataDir == "" {
		bad("data_dir", "missing: name a directory for database, keys and ledger")
	}
	for _, r := range c.Roles {
		if r != "issuer" && r != "decision" && r != "audit" {
			bad("roles", "%q is not one of issuer, decision, audit", r)
		}
	}
	for _, l := range []struct{ key, addr string }{{"issuer_listen", c.IssuerListen}, {"control_listen", c.ControlListen}} {
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			bad(l.key, "want host:port, got %q", l.addr)
		}
	}
	if c.AdminListen != "" {
		if _, _, err := net.SplitHostPort(c.AdminListen); err != nil {
			bad("admin_listen", "want host:port, got %q", c.AdminListen)
		}
		if c.AdminPolicy == "" {
			bad("admin_policy", "missing: name the directory of the policy that says who may administer over admin_listen")
		}
	}
	if c.Admin != "" && !loopback(c.Admin) {
		bad("admin", "want a loopback address, got %q: metrics and health are not authenticated", c.Admin)
	}
	if c.SVIDTTL < 10*time.Second {
		bad("svid_ttl", "want at least 10s, got %s", c.SVIDTTL)
	}
	if c.CATTL < 2*c.SVIDTTL {
		bad("ca_ttl", "want at least twice svid_ttl (%s), got %s: an SVID never outlives its authority", c.SVIDTTL, c.CATTL)
	}
	if c.CRLTTL != 0 && c.CRLTTL < 2*c.SVIDTTL {
		bad("crl_ttl", "want at least twice svid_ttl (%s), got %s: with less, an issuer that is away would have SVIDs refused that are valid still", c.SVIDTTL, c.CRLTTL)
	}
	for _, k := range []struct{ key, name string }{{"ca_key_type", c.CAKeyType}, {"jwt_key_type", c.JWTKeyType}} {
		switch k.name {
		case "", "ec-p256", "ec-p384", "rsa-2048", "rsa-4096":
		default:
			bad(k.key, "%q is not one of ec-p256, ec-p384, rsa-2048, rsa-4096", k.name)
		}
	}
	if c.JWTTTL < 10*time.Second {
		bad("jwt_ttl", "want at least 10s, got %s", c.JWTTTL)
	} else if c.JWTTTL > c.CATTL && c.JWTTTL != Default().JWTTTL {
		// Of the default one nobody said that it should hold where ca_ttl is shorter:
		// each JWT-SVID ends with its authority at the latest.
		bad("jwt_ttl", "want at most ca_ttl (%s), got %s: a JWT-SVID never outlives its authority", c.CATTL, c.JWTTTL)
	}
	if c.AuditMaxBytes < 1<<20 {
		bad("audit_max_bytes", "want a number of bytes, at least %d, got %d", 1<<20, c.AuditMaxBytes)
	}
	if c.Drain < 0 {
		bad("drain", "want 0s or more, got %s", c.Drain)
	}
	c.Attestors.validate(bad)
	if c.AttestRate <= 0 {
		bad("attest_rate", "want more than 0, got %d", c.AttestRate)
	}
	if c.SignRate < 0 {
		bad("sign_rate", "want 0 (no limit) or more, got %d", c.SignRate)
	}
	if len(c.PublisherKeys) > 0 && len(c.Publishers) > 0 {
		bad("publisher_keys", "is the short form of publishers: keep one of the two")
	}
	for i, p := range c.Publishers {
		if len(p.Keys) == 0 {
			bad(fmt.Sprintf("publishers[%d].keys", i), "missing: name the files with the public keys of publisher %q", p.Name)
		}
	}
	c.validateApprovers(bad)
	if c.RecheckSample < 0 {
		bad("recheck_sample", "want 0 (none) or more, got %d", c.RecheckSample)
	}
	if c.Keys != nil {
		c.Keys.validate(bad)
		if c.Keys.Memory != nil && c.Database != nil {
			bad("keys.memory", "a replica whose keys end with its process would leave authorities to the others that nobody can sign with: keep the keys in files (leave keys out) or a token (pkcs11)")
		}
	}
	if c.Upstream != nil {
		c.Upstream.validate(bad)
	}
	if c.PolicySource != nil {
		c.PolicySource.validate(bad)
	}
	if c.Database != nil {
		c.Database.validate(bad)
		if c.Replica == "" {
			c.Replica, _ = os.Hostname() // without one, the next check says what to do
		}
	}
	if (c.Database != nil || c.Replica != "") && !replicaName.MatchString(c.Replica) {
		bad("replica", "want letters, digits, '.', '_', '-', at most 128, got %q", c.Replica)
	}
	if c.Federation != nil {
		c.Federation.validate(c, bad)
	}
	c.validateFederationCAFiles(bad)
	if c.OIDC != nil {
		c.OIDC.validate(c, bad)
	}
	c.Tracing.Validate(bad)
	if !c.Runs("issuer") && c.WorkloadAPI == "" {
		bad("workload_api", "missing: without the issuer role the SVID of this control plane comes from a Workload API socket")
	}
	if !c.Runs("audit") && c.Collector == "" {
		bad("collector", "missing: without the audit role the events of this control plane go to the collector of another")
	}
	return errors.Join(errs...)
}

func (c *Config) validateApprovers(bad func(key, format string, args ...any)) {
	seen := map[string]bool{}
	for i, a := range c.Approvers {
		name := strings.ToLower(strings.TrimSpace(a.Name))
		switch {
		case name == "":
			bad(fmt.Sprintf("approvers[%d].name", i), "missing")
		case seen[name]:
			bad(fmt.Sprintf("approvers[%d].name", i), "%q is there twice: one person counts once", a.Name)
		}
		seen[name] = true
		if len(a.Keys) == 0 {
			bad(fmt.Sprintf("approvers[%d].keys", i), "missing: name the files with the public keys of %q", a.Name)
		}
	}
	switch {
	case c.Approvals < 0 || c.Approvals > 2:
		bad("approvals", "want 0, 1 or 2, got %d", c.Approvals)
	case c.Approvals > len(c.Approvers):
		bad("approvals", "%d are demanded and %d approvers are configured", c.Approvals, len(c.Approvers))
	case c.Approvals > 0 && c.AllowUnsignedPolicy:
		bad("approvals", "take signed policy: what nobody signed has no author to tell from its approvers")
	}
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

package agent

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/workload/sds"
	"github.com/writ-dev/writ/internal/tracing"
)

// Config is the configuration file of writ-agent.
type Config struct {
	// Trust domain to join, as in example.org.
	TrustDomain string `yaml:"trust_domain"`
	// Address of the issuer (SPIRE's server API), host:port; of several replicas
	// one after the other, separated by commas. Each agent begins at a random
	// one, and goes to the next when one does not answer.
	ServerAddress string `yaml:"server_address"`
	// File with the trust bundle (PEM) that proves the issuer at bootstrap.
	TrustBundle string `yaml:"trust_bundle"`
	// Trust whatever issuer answers first. For experiments only.
	InsecureBootstrap bool `yaml:"insecure_bootstrap"`
	// File with the join token, used once; - is standard input. The
	// environment variable WRIT_JOIN_TOKEN serves as well.
	JoinTokenFile string `yaml:"join_token_file"`
	// What proves the node to the issuer in place of a join token: one method.
	Attestor *AttestorConfig `yaml:"attestor"`
	// What workloads are attested by beside what the kernel says of them (unix).
	WorkloadAttestors WorkloadAttestors `yaml:"workload_attestors"`
	// Directory of the agent's own SVID and key, mode 0700.
	DataDir string `yaml:"data_dir"`
	// Path of the Unix socket of the SPIFFE Workload API.
	Socket string `yaml:"socket"`
	// Time between two fetches of authorized entries when no change is pushed.
	SyncInterval time.Duration `yaml:"sync_interval"`
	// Open connections that one user id may hold.
	MaxConnectionsPerUID int `yaml:"max_connections_per_uid"`
	// Open streams that one user id may hold.
	MaxStreamsPerUID int `yaml:"max_streams_per_uid"`
	// How often the process behind an open stream is attested again; 0s is never.
	ReattestInterval time.Duration `yaml:"reattest_interval"`
	// Envoy's secret discovery on the same socket, with the names that SPIRE's
	// agent has for it.
	SDS sds.Names `yaml:"sds"`
	// Loopback address of metrics, /healthz and /readyz; empty is off.
	Admin string `yaml:"admin"`
	// Traces of what the agent does.
	Tracing *tracing.Config `yaml:"tracing"`
}

// Default is the configuration before a file is read.
func Default() Config {
	return Config{
		ServerAddress:        "127.0.0.1:8081",
		SyncInterval:         5 * time.Second,
		MaxConnectionsPerUID: 256,
		MaxStreamsPerUID:     1024,
		ReattestInterval:     time.Minute,
		SDS:                  sds.DefaultNames(),
	}
}

// Validate finds what cannot work. at makes an error at a key of the file, as
// strictyaml.Position does.
func (c *Config) Validate(at func(key, format string, args ...any) error) error {
	var errs []error
	fail := func(key, format string, args ...any) { errs = append(errs, at(key, format, args...)) }
	if c.TrustDomain == "" {
		fail("trust_domain", "required")
	} else if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		fail("trust_domain", "%v", err)
	}
	for _, addr := range c.servers() {
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			fail("server_address", "want host:port, or several separated by commas, got %q", c.ServerAddress)
			break
		}
	}
	if c.TrustBundle != "" && c.InsecureBootstrap {
		fail("insecure_bootstrap", "contradicts trust_bundle: leave one out")
	}
	if c.Attestor != nil {
		c.Attestor.validate(fail)
		if c.JoinTokenFile != "" {
			fail("join_token_file", "contradicts attestor: leave one out")
		}
	}
	c.WorkloadAttestors.validate(fail)
	if c.DataDir == "" {
		fail("data_dir", "required: the agent's own SVID is kept there")
	}
	if c.Socket == "" {
		fail("socket", "required: workloads connect to it")
	} else if !filepath.IsAbs(strings.TrimPrefix(c.Socket, "unix://")) {
		fail("socket", "want an absolute path, as in /run/writ-agent/agent.sock, got %q: workloads are given it, whatever directory they run in", c.Socket)
	} else if c.DataDir != "" && within(c.DataDir, strings.TrimPrefix(c.Socket, "unix://")) {
		fail("socket", "lies in data_dir, which nobody but writ-agent may enter: put it elsewhere, as in /run/writ-agent/agent.sock, got %q", c.Socket)
	}
	if c.SyncInterval < 100*time.Millisecond || c.SyncInterval > time.Hour {
		fail("sync_interval", "want 100ms to 1h, got %v", c.SyncInterval)
	}
	if c.MaxConnectionsPerUID < 1 {
		fail("max_connections_per_uid", "want at least 1, got %d", c.MaxConnectionsPerUID)
	}
	if c.MaxStreamsPerUID < 1 {
		fail("max_streams_per_uid", "want at least 1, got %d", c.MaxStreamsPerUID)
	}
	if c.ReattestInterval != 0 && c.ReattestInterval < time.Second {
		fail("reattest_interval", "want 0s (never) or at least 1s, got %v", c.ReattestInterval)
	}
	if err := c.SDS.Validate(func(key, format string, args ...any) error { return at("sds."+key, format, args...) }); err != nil {
		errs = append(errs, err)
	}
	if c.Admin != "" {
		host, _, err := net.SplitHostPort(c.Admin)
		if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			fail("admin", "want a loopback address with a port, as in 127.0.0.1:9092, got %q", c.Admin)
		}
	}
	c.Tracing.Validate(fail)
	return errors.Join(errs...)
}

// servers are the addresses of the issuer's replicas.
func (c *Config) servers() []string {
	list := strings.Split(c.ServerAddress, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

// within reports whether path lies below dir, by their names.
func within(dir, path string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

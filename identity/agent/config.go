package agent

import "time"

// Config is the configuration file of writ-agent.
type Config struct {
	// Trust domain to join, as in example.org.
	TrustDomain string `yaml:"trust_domain"`
	// Address of the issuer (SPIRE's server API), host:port.
	ServerAddress string `yaml:"server_address"`
	// File with the trust bundle (PEM) that proves the issuer at bootstrap.
	TrustBundle string `yaml:"trust_bundle"`
	// Trust whatever issuer answers first. For experiments only.
	InsecureBootstrap bool `yaml:"insecure_bootstrap"`
	// File with the join token, used once; - is standard input. The
	// environment variable WRIT_JOIN_TOKEN serves as well.
	JoinTokenFile string `yaml:"join_token_file"`
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
	// Loopback address of metrics, /healthz and /readyz; empty is off.
	Admin string `yaml:"admin"`
}

// Default is the configuration before a file is read.
func Default() Config {
	return Config{
		ServerAddress:        "127.0.0.1:8081",
		SyncInterval:         5 * time.Second,
		MaxConnectionsPerUID: 256,
		MaxStreamsPerUID:     1024,
	}
}

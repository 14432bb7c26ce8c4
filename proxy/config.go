package proxy

import "time"

// Config is the configuration file of writ-sidecar.
type Config struct {
	// Trust domain of this workload, as in example.org.
	TrustDomain string `yaml:"trust_domain"`
	// Name of this service in the signed service catalogue.
	Service string `yaml:"service"`
	// SPIFFE Workload API socket: unix:///absolute/path or tcp://IP:port.
	WorkloadAPI string `yaml:"workload_api"`
	// Where requests from other workloads arrive. Leave out for a workload
	// that only calls others.
	Inbound *Inbound `yaml:"inbound"`
	// Services that this workload calls, each with a local port.
	Upstreams []Upstream `yaml:"upstreams"`
	// Control plane that distributes policy and collects the record.
	Control Control `yaml:"control"`
	// How policy is trusted and kept.
	Policy Policy `yaml:"policy"`
	// What happens when it is not known whether SVIDs are revoked.
	Revocation Revocation `yaml:"revocation"`
	// Where the record is kept until the collector has it.
	Audit Audit `yaml:"audit"`
	// Loopback address of metrics, /healthz and /readyz.
	Admin string `yaml:"admin"`
	// Time that open requests get at shutdown.
	Drain time.Duration `yaml:"drain"`
}

// Inbound is the mTLS listener in front of the application.
type Inbound struct {
	// Address to listen on, host:port.
	Listen string `yaml:"listen"`
	// Address of the application, host:port on loopback or unix:///path.
	App string `yaml:"app"`
	// Protocol of the application: http (HTTP/1.1) or grpc (HTTP/2 without TLS).
	Protocol string `yaml:"protocol" enum:"http|grpc"`
	// Maximum age of a connection, give or take a tenth, so that not all end at
	// once; afterwards it is closed between requests. 1h when left out.
	MaxConnectionAge time.Duration `yaml:"max_connection_age"`
	// Largest request head accepted, bytes.
	MaxHeadBytes int `yaml:"max_head_bytes"`
	// What happens to request headers with a _ in their name: strip (the
	// default) or allow. Many applications read X_Role and X-Role as one.
	Underscores string `yaml:"underscores" enum:"strip|allow"`
}

// Upstream is a service that this workload calls.
type Upstream struct {
	// Name of the service called, for logs and metrics.
	Name string `yaml:"name"`
	// Loopback address, or unix:///path, where the application finds it.
	Listen string `yaml:"listen"`
	// Address of the inbound listener of the service called.
	Address string `yaml:"address"`
	// SPIFFE ID the service called must prove.
	SPIFFEID string `yaml:"spiffe_id"`
	// Protocol spoken: http or grpc.
	Protocol string `yaml:"protocol" enum:"http|grpc"`
	// User ids that may use a TCP listener, looked up from the owner of the
	// connecting socket. Left out: the sidecar's own.
	AllowUIDs []int `yaml:"allow_uids"`
}

// Control is the control plane.
type Control struct {
	// Address of writd's control listener, host:port.
	Address string `yaml:"address"`
	// SPIFFE ID it must prove; spiffe://<trust domain>/writ/server when left out.
	SPIFFEID string `yaml:"spiffe_id"`
}

// Values of Policy.Trust.
const (
	TrustControlPlane = "control-plane"
	TrustPublisher    = "publisher"
)

// Policy is how policy is trusted and kept.
type Policy struct {
	// Files with the public keys (PEM) of the decision keys that may sign a
	// policy slice.
	Keys []string `yaml:"keys"`
	// Whom to believe what policy says: control-plane (slices that the decision
	// key signed; the default), or publisher (sources that the publishers below
	// signed, compiled here).
	Trust string `yaml:"trust" enum:"control-plane|publisher"`
	// Publishers to believe with trust publisher, each with what it owns. The
	// part of each must be there.
	Publishers []Publisher `yaml:"publishers"`
	// Directory where the last verified slice is kept.
	Dir string `yaml:"dir"`
	// Age of the last contact with the control plane from which max_age_action
	// applies; 0 is never.
	MaxAge time.Duration `yaml:"max_age"`
	// What happens then: alarm (keep deciding, and say so) or deny.
	MaxAgeAction string `yaml:"max_age_action" enum:"alarm|deny"`
	// Let policy look outside of its input, as far as its data.writ.outside says:
	// http.send, net.lookup_ip_addr, opa.runtime. Without it, policy that does so
	// is refused, and the last good one stays.
	AllowOutside bool `yaml:"allow_outside"`
}

// Publisher is somebody whose part of policy is believed.
type Publisher struct {
	// Name of the publisher, for messages.
	Name string `yaml:"name"`
	// Files with the public keys (PEM) that sign its part.
	Keys []string `yaml:"keys"`
	// Packages that it may define, with what is below them: services.orders,
	// guardrails.internal, shop; "*" is everything there is.
	Packages []string `yaml:"packages"`
	// Data that it may define, with what is below.
	Data []string `yaml:"data"`
	// Services for which it may write YAML rules, beside those of its packages.
	Rules []string `yaml:"rules"`
	// Do without its part when there is none. Whoever holds the control plane
	// can leave out an optional part.
	Optional bool `yaml:"optional"`
}

// Revocation is how old the list of revoked SVIDs may be, which comes from the
// agent at workload_api.
type Revocation struct {
	// Time since the issuer last said that the list is complete, from which
	// max_age_action applies; 0 is never.
	MaxAge time.Duration `yaml:"max_age"`
	// What happens then: alarm (go on with the list there is, and say so) or deny
	// (accept no peer). An agent that knows no revocations, as stock
	// spire-agent, never has a list.
	MaxAgeAction string `yaml:"max_age_action" enum:"alarm|deny"`
}

// Audit is where the record is kept until the collector has it.
type Audit struct {
	// Directory of the spool.
	Dir string `yaml:"dir"`
	// Bytes on disk that the spool may take.
	MaxBytes int64 `yaml:"max_bytes"`
	// What happens to a request when the spool is full: deny it, block it
	// until there is room, or drop the event and record how many were dropped.
	OnFull string `yaml:"on_full" enum:"deny|block|drop"`
	// Request headers that may be recorded, lower case, when policy reads
	// them. A trailing * is a prefix.
	Headers []string `yaml:"headers"`
	// Query parameters that may be recorded when policy reads them.
	Query []string `yaml:"query"`
}

// Default is the configuration before a file is read.
func Default() Config {
	return Config{
		Admin:  "127.0.0.1:0",
		Drain:  5 * time.Second,
		Policy: Policy{MaxAgeAction: "alarm", Trust: TrustControlPlane},
		// An agent hears from its issuer every 10 seconds.
		Revocation: Revocation{MaxAge: 5 * time.Minute, MaxAgeAction: "alarm"},
		Audit:      Audit{MaxBytes: 64 << 20, OnFull: "deny"},
	}
}

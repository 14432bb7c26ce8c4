package tracing

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
)

// Config says where spans go. What it leaves out is taken from the environment
// variables of OpenTelemetry (OTEL_…).
type Config struct {
	// Collector that takes traces (OTLP over gRPC): https://host:port, or
	// http://host:port for a plain connection. Without it and without
	// OTEL_EXPORTER_OTLP_ENDPOINT nothing is traced.
	Endpoint string `yaml:"endpoint"`
	// File with the authorities (PEM) that prove the collector, in place of the
	// system's.
	CAFile string `yaml:"ca_file"`
	// Share of the traces that begin here which are recorded, 0 to 1; what comes
	// with a trace is recorded if that is. 1 when left out.
	Sample *float64 `yaml:"sample"`
}

// Validate finds what cannot work. bad is told of each key below tracing.
func (c *Config) Validate(bad func(key, format string, args ...any)) {
	if c == nil {
		return
	}
	if c.Endpoint != "" {
		if _, _, err := ParseEndpoint(c.Endpoint); err != nil {
			bad("tracing.endpoint", "%v", err)
		}
	}
	if c.Sample != nil && !(*c.Sample >= 0 && *c.Sample <= 1) {
		bad("tracing.sample", "want 0 to 1, got %v", *c.Sample)
	}
}

// defaultPort is that of OTLP over gRPC.
const defaultPort = "4317"

// ParseEndpoint returns the address of a collector, host:port, and whether the
// connection is plain.
func ParseEndpoint(text string) (address string, plain bool, err error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", false, errors.New("want https://host:port, or http://host:port for a plain connection")
	case u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return "", false, fmt.Errorf("want https://host:port, or http://host:port for a plain connection, got %q", u.Redacted())
	case u.User != nil:
		return "", false, errors.New("no user or password in an URL: OTEL_EXPORTER_OTLP_HEADERS is for that")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return "", false, fmt.Errorf("%q has more than host and port, which are all that OTLP over gRPC has", u.Redacted())
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", false, fmt.Errorf("%q is not a port", port)
	}
	return net.JoinHostPort(u.Hostname(), port), u.Scheme == "http", nil
}

package writdconf

import (
	"net"
	"strings"
)

// Upstream is who signs the X.509 authorities of this control plane: one of the
// two.
type Upstream struct {
	// A CA in files.
	Disk *UpstreamDisk `yaml:"disk"`
	// An issuer with SPIRE's server API, whose nested issuer this one is.
	SPIRE *UpstreamSPIRE `yaml:"spire"`
}

// UpstreamDisk is a CA in files.
type UpstreamDisk struct {
	// File with the CA certificate (PEM), and after it those between it and its
	// root.
	Cert string `yaml:"cert"`
	// File with the CA's private key (PEM), that only this user can read.
	Key string `yaml:"key"`
	// File with the roots (PEM); cert is the root when left out.
	Bundle string `yaml:"bundle"`
}

// UpstreamSPIRE is an issuer with SPIRE's server API.
type UpstreamSPIRE struct {
	// Address of the issuer, host:port.
	ServerAddress string `yaml:"server_address"`
	// Workload API socket of an agent there, unix:///path or tcp://IP:port,
	// that gives this control plane the SVID of an entry marked downstream.
	WorkloadAPI string `yaml:"workload_api"`
}

func (u *Upstream) validate(bad func(key, format string, args ...any)) {
	switch {
	case u.Disk == nil && u.SPIRE == nil:
		bad("upstream", "want disk or spire in it")
	case u.Disk != nil && u.SPIRE != nil:
		bad("upstream", "disk and spire contradict each other: keep one of the two")
	case u.Disk != nil:
		if u.Disk.Cert == "" {
			bad("upstream.disk.cert", "missing: name the file with the CA certificate")
		}
		if u.Disk.Key == "" {
			bad("upstream.disk.key", "missing: name the file with the CA's private key")
		}
	default:
		if _, _, err := net.SplitHostPort(u.SPIRE.ServerAddress); err != nil {
			bad("upstream.spire.server_address", "want host:port, got %q", u.SPIRE.ServerAddress)
		}
		if !strings.HasPrefix(u.SPIRE.WorkloadAPI, "unix:///") && !strings.HasPrefix(u.SPIRE.WorkloadAPI, "tcp://") {
			bad("upstream.spire.workload_api", "want unix:///path or tcp://IP:port, got %q", u.SPIRE.WorkloadAPI)
		}
	}
}

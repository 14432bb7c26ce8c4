package agent

import (
	"github.com/writ-dev/writ/identity/attest/k8spsat"
	"github.com/writ-dev/writ/identity/attest/x509pop"
)

// AttestorConfig is one method of node attestation.
type AttestorConfig struct {
	// An X.509 certificate that the machine has from another PKI.
	X509PoP *X509PoP `yaml:"x509pop"`
	// The projected service account token of the agent's pod.
	K8sPSAT *K8sPSAT `yaml:"k8s_psat"`
}

// X509PoP is a certificate of the machine. The files are read at each
// attestation, so that the certificate can be renewed.
type X509PoP struct {
	// File with the machine's certificate (PEM), intermediates behind it.
	Cert string `yaml:"cert"`
	// File with its private key (PEM): RSA or ECDSA.
	Key string `yaml:"key"`
	// File with more intermediates (PEM).
	Intermediates string `yaml:"intermediates"`
}

// K8sPSAT is a service account token.
type K8sPSAT struct {
	// Name of the cluster in the issuer's configuration.
	Cluster string `yaml:"cluster"`
	// File with the projected service account token;
	// /var/run/secrets/tokens/spire-agent when left out.
	TokenFile string `yaml:"token_file"`
}

// New returns the method that is configured; nil for join tokens.
func (c *AttestorConfig) New() NodeAttestor {
	switch {
	case c == nil:
	case c.X509PoP != nil:
		return x509pop.Attestor{Files: x509pop.Config(*c.X509PoP)}
	case c.K8sPSAT != nil:
		return k8spsat.Attestor{Config: k8spsat.Config(*c.K8sPSAT)}
	}
	return nil
}

func (c *AttestorConfig) validate(fail func(key, format string, args ...any)) {
	if (c.X509PoP == nil) == (c.K8sPSAT == nil) {
		fail("attestor", "want one method: x509pop or k8s_psat (without attestor it is a join token)")
		return
	}
	if x := c.X509PoP; x != nil {
		if x.Cert == "" {
			fail("attestor.x509pop.cert", "required: the file with this machine's certificate (PEM)")
		}
		if x.Key == "" {
			fail("attestor.x509pop.key", "required: the file with the certificate's private key (PEM)")
		}
	}
	if k := c.K8sPSAT; k != nil && k.Cluster == "" {
		fail("attestor.k8s_psat.cluster", "required: the cluster's name in the issuer's configuration")
	}
}

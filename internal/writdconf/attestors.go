package writdconf

// Attestors are the methods by which nodes may prove themselves.
type Attestors struct {
	// Join tokens, which are served unless they are turned off.
	JoinToken JoinToken `yaml:"join_token"`
	// X.509 certificates that machines have from another PKI.
	X509PoP *X509PoP `yaml:"x509pop"`
}

// JoinToken is attestation by a secret that works once.
type JoinToken struct {
	// Serve no join tokens.
	Off bool `yaml:"off"`
}

// Files are names of files: a list, or one alone.
type Files []string

// UnmarshalText makes a list of one.
func (f *Files) UnmarshalText(text []byte) error {
	*f = Files{string(text)}
	return nil
}

// X509PoP is attestation by a certificate.
type X509PoP struct {
	// Files with the authorities (PEM) that sign the machines' certificates.
	// They are read at each attestation.
	CABundle Files `yaml:"ca_bundle"`
	// Template of an agent's path below /spire/agent; the default is
	// /{{ .PluginName }}/{{ .Fingerprint }}.
	AgentPathTemplate string `yaml:"agent_path_template"`
}

func (a *Attestors) validate(bad func(key, format string, args ...any)) {
	if a.JoinToken.Off && a.X509PoP == nil {
		bad("attestors.join_token.off", "leaves no method: no node could join")
	}
	if x := a.X509PoP; x != nil && len(x.CABundle) == 0 {
		bad("attestors.x509pop.ca_bundle", "missing: name the files with the authorities (PEM) of the machines' certificates")
	}
}

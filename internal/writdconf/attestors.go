package writdconf

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Attestors are the methods by which nodes may prove themselves.
type Attestors struct {
	// Join tokens, which are served unless they are turned off.
	JoinToken JoinToken `yaml:"join_token"`
	// X.509 certificates that machines have from another PKI.
	X509PoP *X509PoP `yaml:"x509pop"`
	// Service account tokens of agents in Kubernetes.
	K8sPSAT *K8sPSAT `yaml:"k8s_psat"`
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

// K8sPSAT is attestation by Kubernetes.
type K8sPSAT struct {
	// Clusters whose nodes may join, by the name that their agents give.
	Clusters map[string]Cluster `yaml:"clusters"`
}

// Cluster is one Kubernetes cluster.
type Cluster struct {
	// File that says how to reach the API server (kubeconfig); when left out,
	// the cluster that writd itself runs in.
	Kubeconfig string `yaml:"kubeconfig"`
	// Service accounts that agents run as: namespace:name.
	ServiceAccounts []string `yaml:"service_accounts"`
	// Audiences of which the token must have one; spire-server when left out.
	Audience []string `yaml:"audience"`
	// Labels of nodes that become selectors (agent_node_label).
	NodeLabels []string `yaml:"node_labels"`
	// Labels of the agent's pod that become selectors (agent_pod_label).
	PodLabels []string `yaml:"pod_labels"`
}

func (a *Attestors) validate(bad func(key, format string, args ...any)) {
	if a.JoinToken.Off && a.X509PoP == nil && a.K8sPSAT == nil {
		bad("attestors.join_token.off", "leaves no method: no node could join")
	}
	if x := a.X509PoP; x != nil && len(x.CABundle) == 0 {
		bad("attestors.x509pop.ca_bundle", "missing: name the files with the authorities (PEM) of the machines' certificates")
	}
	if a.K8sPSAT == nil {
		return
	}
	if len(a.K8sPSAT.Clusters) == 0 {
		bad("attestors.k8s_psat.clusters", "missing: name the clusters whose nodes may join")
	}
	for _, name := range slices.Sorted(maps.Keys(a.K8sPSAT.Clusters)) {
		c, key := a.K8sPSAT.Clusters[name], fmt.Sprintf("attestors.k8s_psat.clusters.%s", name)
		if len(c.ServiceAccounts) == 0 {
			bad(key+".service_accounts", "missing: name the service accounts of the agents, namespace:name")
		}
		for i, account := range c.ServiceAccounts {
			namespace, name, ok := strings.Cut(account, ":")
			if !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
				bad(fmt.Sprintf("%s.service_accounts[%d]", key, i), "want namespace:name, got %q", account)
			}
		}
	}
}

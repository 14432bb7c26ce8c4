package main

import (
	"fmt"

	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/attest/server/k8spsat"
	"github.com/writ-dev/writ/identity/attest/server/x509pop"
)

// attestors are the methods by which nodes may prove themselves to the issuer.
func (w *writd) attestors() ([]server.Attestor, error) {
	var served []server.Attestor
	if !w.cfg.Attestors.JoinToken.Off {
		served = append(served, server.JoinToken{TrustDomain: w.td})
	}
	if c := w.cfg.Attestors.X509PoP; c != nil {
		a, err := x509pop.New(x509pop.Config{TrustDomain: w.td, CABundles: c.CABundle, Path: c.AgentPathTemplate})
		if err != nil {
			return nil, fmt.Errorf("attestors.x509pop: %w", err)
		}
		served = append(served, a)
	}
	if c := w.cfg.Attestors.K8sPSAT; c != nil {
		clusters := map[string]k8spsat.Cluster{}
		for name, cluster := range c.Clusters {
			clusters[name] = k8spsat.Cluster(cluster)
		}
		a, err := k8spsat.New(k8spsat.Config{TrustDomain: w.td, Clusters: clusters})
		if err != nil {
			return nil, fmt.Errorf("attestors.k8s_psat: %w", err)
		}
		served = append(served, a)
	}
	return served, nil
}

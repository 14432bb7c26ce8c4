package writdconf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/strictyaml"
)

func TestAttestors(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		want       Attestors
		wantErr    string
	}{
		{name: "nothing"},
		{name: "join token named", yaml: "attestors: {join_token: {}}"},
		{name: "one file", yaml: "attestors: {x509pop: {ca_bundle: a.pem}}", want: Attestors{X509PoP: &X509PoP{CABundle: Files{"a.pem"}}}},
		{name: "files", yaml: "attestors: {join_token: {off: true}, x509pop: {ca_bundle: [a.pem, b.pem]}}",
			want: Attestors{JoinToken: JoinToken{Off: true}, X509PoP: &X509PoP{CABundle: Files{"a.pem", "b.pem"}}}},
		{name: "no file", yaml: "attestors: {x509pop: {}}", wantErr: "attestors.x509pop.ca_bundle: missing"},
		{name: "cluster", yaml: "attestors: {k8s_psat: {clusters: {c: {service_accounts: [writ:agent]}}}}",
			want: Attestors{K8sPSAT: &K8sPSAT{Clusters: map[string]Cluster{"c": {ServiceAccounts: []string{"writ:agent"}}}}}},
		{name: "no cluster", yaml: "attestors: {k8s_psat: {}}", wantErr: "attestors.k8s_psat.clusters: missing"},
		{name: "no service account", yaml: "attestors: {k8s_psat: {clusters: {c: {}}}}", wantErr: "attestors.k8s_psat.clusters.c.service_accounts: missing"},
		{name: "service account of no namespace", yaml: "attestors: {k8s_psat: {clusters: {c: {service_accounts: [agent]}}}}", wantErr: "clusters.c.service_accounts[0]: want namespace:name"},
		{name: "no method", yaml: "attestors: {join_token: {off: true}}", wantErr: "attestors.join_token.off: leaves no method"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Default()
			_, err := strictyaml.Decode("writd.yaml", []byte("trust_domain: example.org\ndata_dir: /x\n"+tc.yaml), &c)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Validate(func(key, format string, args ...any) error { return fmt.Errorf(key+": "+format, args...) })
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("%v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tc.want, c.Attestors); diff != "" {
				t.Error(diff)
			}
		})
	}
}

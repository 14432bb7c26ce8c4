package writdconf

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestValidateFederationAndOIDC(t *testing.T) {
	spiffe := func() *Federation { return &Federation{Listen: "0.0.0.0:8443"} }
	web := func() *Federation {
		return &Federation{Listen: ":8443", Profile: ProfileWeb, CertFile: "c", KeyFile: "k"}
	}
	plain := func() *OIDC { return &OIDC{Listen: "127.0.0.1:8086", Issuer: "https://id.example.org/a"} }
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // empty: nothing
	}{
		{"by SVID", func(c *Config) { c.Federation = spiffe() }, ""},
		{"by certificate", func(c *Config) { c.Federation = web() }, ""},
		{"no address", func(c *Config) { c.Federation = &Federation{} }, "federation.listen: want host:port"},
		{"unknown profile", func(c *Config) { c.Federation = spiffe(); c.Federation.Profile = "web" }, "federation.profile: want"},
		{"certificate and SVID", func(c *Config) { c.Federation = spiffe(); c.Federation.CertFile = "c" }, "federation.cert_file: is for profile https_web"},
		{"no certificate", func(c *Config) { c.Federation = web(); c.Federation.CertFile = "" }, "federation.cert_file: missing"},
		{"no key", func(c *Config) { c.Federation = web(); c.Federation.KeyFile = "" }, "federation.key_file: missing"},
		{"parts of seconds", func(c *Config) { c.Federation = spiffe(); c.Federation.RefreshHint = 1500 * time.Millisecond }, "federation.refresh_hint: want whole seconds"},
		{"too rarely", func(c *Config) { c.Federation = spiffe(); c.Federation.RefreshHint = 3 * time.Hour }, "federation.refresh_hint: want at most a ninth of ca_ttl (2h40m0s)"},
		{"authorities", func(c *Config) { c.FederationCAFiles = map[string]string{"partner.org": "ca.pem"} }, ""},
		{"authorities of no trust domain", func(c *Config) { c.FederationCAFiles = map[string]string{"https://partner.org": "ca.pem"} }, "federation_ca_files.https://partner.org: want the name of a trust domain"},
		{"authorities of an ID", func(c *Config) { c.FederationCAFiles = map[string]string{"spiffe://partner.org": "ca.pem"} }, "want the name of a trust domain"},
		{"authorities of ours", func(c *Config) { c.FederationCAFiles = map[string]string{c.TrustDomain: "ca.pem"} }, "is our own trust domain"},
		{"authorities in no file", func(c *Config) { c.FederationCAFiles = map[string]string{"partner.org": ""} }, "federation_ca_files.partner.org: missing"},
		{"authorities without issuer", func(c *Config) {
			c.FederationCAFiles, c.Roles, c.WorkloadAPI = map[string]string{"partner.org": "ca.pem"}, []string{"audit"}, "unix:///x"
		}, "federation_ca_files: is for the issuer role"},
		{"not the issuer", func(c *Config) { c.Federation, c.Roles, c.WorkloadAPI = spiffe(), []string{"audit"}, "unix:///x" }, "federation: is for the issuer role"},
		{"plain on loopback", func(c *Config) { c.OIDC = plain() }, ""},
		{"plain to everybody", func(c *Config) { c.OIDC = plain(); c.OIDC.Listen = ":80" }, "oidc.listen: want a loopback address without cert_file"},
		{"TLS to everybody", func(c *Config) { c.OIDC = plain(); c.OIDC.Listen, c.OIDC.CertFile, c.OIDC.KeyFile = ":443", "c", "k" }, ""},
		{"key only", func(c *Config) { c.OIDC = plain(); c.OIDC.KeyFile = "k" }, "oidc.cert_file: missing"},
		{"certificate only", func(c *Config) { c.OIDC = plain(); c.OIDC.CertFile = "c" }, "oidc.key_file: missing"},
		{"no issuer", func(c *Config) { c.OIDC = plain(); c.OIDC.Issuer = "" }, "oidc.issuer: missing"},
		{"plain issuer", func(c *Config) { c.OIDC = plain(); c.OIDC.Issuer = "http://id.example.org" }, "oidc.issuer: want https"},
		{"issuer with slash", func(c *Config) { c.OIDC = plain(); c.OIDC.Issuer = "https://id.example.org/" }, "oidc.issuer: no / at the end"},
		{"issuer with query", func(c *Config) { c.OIDC = plain(); c.OIDC.Issuer = "https://id.example.org?a" }, "oidc.issuer: no user, query"},
		{"not the issuer role", func(c *Config) { c.OIDC, c.Roles, c.WorkloadAPI = plain(), []string{"audit"}, "unix:///x" }, "oidc: is for the issuer role"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Default()
			c.TrustDomain, c.DataDir = "example.org", "/x"
			tt.change(&c)
			err := c.Validate(func(key, format string, args ...any) error { return fmt.Errorf(key+": "+format, args...) })
			got := ""
			if err != nil {
				got = err.Error()
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

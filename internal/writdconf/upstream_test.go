package writdconf

import (
	"fmt"
	"strings"
	"testing"
)

func TestValidateAuthorities(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string // empty: nothing
	}{
		"nothing":            {func(*Config) {}, ""},
		"type of key":        {func(c *Config) { c.CAKeyType = "ed25519" }, `ca_key_type: "ed25519" is not one of`},
		"type of JWT key":    {func(c *Config) { c.JWTKeyType = "rsa" }, "jwt_key_type"},
		"RSA":                {func(c *Config) { c.CAKeyType, c.JWTKeyType = "rsa-4096", "ec-p384" }, ""},
		"empty upstream":     {func(c *Config) { c.Upstream = &Upstream{} }, "upstream: want disk or spire"},
		"two upstreams":      {func(c *Config) { c.Upstream = &Upstream{Disk: &UpstreamDisk{}, SPIRE: &UpstreamSPIRE{}} }, "contradict"},
		"disk without key":   {func(c *Config) { c.Upstream = &Upstream{Disk: &UpstreamDisk{Cert: "a"}} }, "upstream.disk.key: missing"},
		"disk":               {func(c *Config) { c.Upstream = &Upstream{Disk: &UpstreamDisk{Cert: "a", Key: "b"}} }, ""},
		"spire without port": {func(c *Config) { c.Upstream = &Upstream{SPIRE: &UpstreamSPIRE{"a", "unix:///b"}} }, "want host:port"},
		"spire by path":      {func(c *Config) { c.Upstream = &Upstream{SPIRE: &UpstreamSPIRE{"a:1", "/b"}} }, "want unix:///path"},
		"spire":              {func(c *Config) { c.Upstream = &Upstream{SPIRE: &UpstreamSPIRE{"a:1", "unix:///b"}} }, ""},
		"empty keys":         {func(c *Config) { c.Keys = &Keys{} }, "keys: want pkcs11 or memory"},
		"memory":             {func(c *Config) { c.Keys = &Keys{Memory: &MemoryKeys{}} }, ""},
		"memory and token":   {func(c *Config) { c.Keys = &Keys{Memory: &MemoryKeys{}, PKCS11: &PKCS11{}} }, "keys: pkcs11 and memory contradict"},
		"memory of replicas": {func(c *Config) { c.Keys, c.Database = &Keys{Memory: &MemoryKeys{}}, &Database{} }, "keys.memory: a replica"},
		"token without PIN":  {func(c *Config) { c.Keys = &Keys{PKCS11: &PKCS11{Module: "m", TokenLabel: "l"}} }, "keys.pkcs11.pin_file: missing"},
	} {
		c := Default()
		c.TrustDomain, c.DataDir = "example.org", "/x"
		tt.change(&c)
		err := c.Validate(func(key, format string, args ...any) error { return fmt.Errorf(key+": "+format, args...) })
		if got := fmt.Sprint(err); tt.want == "" && err != nil || tt.want != "" && !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

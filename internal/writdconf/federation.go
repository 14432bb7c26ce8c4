package writdconf

import (
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Values of Federation.Profile.
const (
	ProfileSPIFFE = "https_spiffe"
	ProfileWeb    = "https_web"
)

// Federation is our own bundle endpoint, from which other trust domains get our
// trust bundle.
type Federation struct {
	// Address to listen on, host:port.
	Listen string `yaml:"listen"`
	// How the endpoint proves itself: https_spiffe (the default; an X509-SVID of
	// spiffe://<trust domain>/spire/server) or https_web (a certificate of the
	// web, from the files below).
	Profile string `yaml:"profile" enum:"https_spiffe|https_web"`
	// File with the certificate chain (PEM), with profile https_web. Read again
	// when it changes.
	CertFile string `yaml:"cert_file"`
	// File with the private key (PEM), with profile https_web.
	KeyFile string `yaml:"key_file"`
	// How often others are told to ask, whole seconds; a tenth of ca_ttl, at most
	// 5m, when left out. New keys are published a third of ca_ttl before they
	// are used.
	RefreshHint time.Duration `yaml:"refresh_hint"`
}

func (f *Federation) validate(c *Config, bad func(key, format string, args ...any)) {
	if f.Profile == "" {
		f.Profile = ProfileSPIFFE
	}
	if _, _, err := net.SplitHostPort(f.Listen); err != nil {
		bad("federation.listen", "want host:port, got %q", f.Listen)
	}
	switch {
	case f.Profile != ProfileSPIFFE && f.Profile != ProfileWeb:
		bad("federation.profile", "want https_spiffe or https_web, got %q", f.Profile)
	case f.Profile == ProfileSPIFFE && f.CertFile+f.KeyFile != "":
		bad("federation.cert_file", "is for profile https_web: with https_spiffe the endpoint shows an X509-SVID")
	case f.Profile == ProfileWeb && f.CertFile == "":
		bad("federation.cert_file", "missing: name the file with the certificate chain")
	case f.Profile == ProfileWeb && f.KeyFile == "":
		bad("federation.key_file", "missing: name the file with the private key")
	}
	switch {
	case f.RefreshHint < 0 || f.RefreshHint%time.Second != 0:
		bad("federation.refresh_hint", "want whole seconds, got %s", f.RefreshHint)
	case f.RefreshHint > c.CATTL/9:
		bad("federation.refresh_hint", "want at most a ninth of ca_ttl (%s), got %s: a new key is published a third of ca_ttl before it is used, and others must have asked by then, with room for failures",
			(c.CATTL / 9).Truncate(time.Second), f.RefreshHint)
	}
	if !c.Runs("issuer") {
		bad("federation", "is for the issuer role: whose bundle would it be?")
	}
}

func (c *Config) validateFederationCAFiles(bad func(key, format string, args ...any)) {
	for name, file := range c.FederationCAFiles {
		key := "federation_ca_files." + name
		td, err := spiffeid.TrustDomainFromString(name)
		switch {
		case err != nil || td.Name() != name:
			bad(key, "want the name of a trust domain, as in partner.org, got %q", name)
		case name == c.TrustDomain:
			bad(key, "is our own trust domain, whose bundle is fetched nowhere")
		case file == "":
			bad(key, "missing: name the file with the authorities")
		}
	}
	if len(c.FederationCAFiles) > 0 && !c.Runs("issuer") {
		bad("federation_ca_files", "is for the issuer role, which fetches bundles")
	}
}

// OIDC is the discovery document for those who verify JWT-SVIDs as tokens of an
// OpenID Connect provider.
type OIDC struct {
	// Address to listen on, host:port. Without cert_file a loopback address, for
	// a web server in front.
	Listen string `yaml:"listen"`
	// URL of the issuer, as the iss claim of JWT-SVIDs has it: https, where the
	// document is found under /.well-known/openid-configuration.
	Issuer string `yaml:"issuer"`
	// File with the certificate chain (PEM). Read again when it changes.
	CertFile string `yaml:"cert_file"`
	// File with the private key (PEM).
	KeyFile string `yaml:"key_file"`
}

func (o *OIDC) validate(c *Config, bad func(key, format string, args ...any)) {
	if _, _, err := net.SplitHostPort(o.Listen); err != nil {
		bad("oidc.listen", "want host:port, got %q", o.Listen)
	} else if o.CertFile == "" && !loopback(o.Listen) {
		bad("oidc.listen", "want a loopback address without cert_file, got %q: keys that came over plain HTTP prove nothing", o.Listen)
	}
	switch {
	case o.CertFile == "" && o.KeyFile != "":
		bad("oidc.cert_file", "missing: name the file with the certificate chain")
	case o.CertFile != "" && o.KeyFile == "":
		bad("oidc.key_file", "missing: name the file with the private key")
	}
	if err := CheckIssuerURL(o.Issuer); err != "" {
		bad("oidc.issuer", "%s, got %q", err, o.Issuer)
	}
	if !c.Runs("issuer") {
		bad("oidc", "is for the issuer role: whose keys would it show?")
	}
}

// CheckIssuerURL says what is wrong with the URL of an issuer (OpenID Connect
// Discovery, section 3), or nothing. Plain HTTP is for loopback addresses.
func CheckIssuerURL(text string) string {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return "missing: want the https URL that verifiers know"
	case err != nil:
		return "not a URL"
	case u.Hostname() == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(net.JoinHostPort(u.Hostname(), "0"))):
		return "want https (http is for loopback addresses only)"
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "no user, query or fragment may be in it"
	case len(u.Path) > 0 && u.Path[len(u.Path)-1] == '/':
		return "no / at the end: verifiers compare it byte by byte"
	}
	return ""
}

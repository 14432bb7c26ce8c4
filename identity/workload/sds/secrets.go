package sds

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/identity/workload"
)

const (
	secretType      = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	spiffeValidator = "envoy.tls.cert_validator.spiffe"
	// metadataKey of Envoy's node overrides the configuration, as with SPIRE.
	metadataKey = "disable_spiffe_cert_validation"
)

// secrets are what one request is answered with.
type secrets struct {
	list []*tlsv3.Secret
	// certificates are the names of those that hold a key.
	certificates []string
	digest       []byte // of what is public in them
}

// build makes the secrets of these names; of none: everything.
func (s *service) build(g workload.Grant, names []string, spiffe bool) (*secrets, error) {
	b := builder{Names: s.c.Names, grant: g, spiffe: spiffe}
	if len(names) == 0 {
		names = b.everything()
	}
	set := &secrets{}
	var unknown []string
	hash := sha256.New()
	for _, name := range names {
		secret, public, err := b.secret(name)
		if err != nil {
			return nil, err
		}
		if secret == nil {
			unknown = append(unknown, strconv.Quote(name))
			continue
		}
		set.list = append(set.list, secret)
		if secret.GetTlsCertificate() != nil {
			set.certificates = append(set.certificates, name)
		}
		hash.Write([]byte(strconv.Quote(name)))
		hash.Write(public)
	}
	if len(unknown) > 0 {
		return nil, status.Errorf(codes.InvalidArgument, "not for this workload: %s", strings.Join(unknown, ", "))
	}
	set.digest = hash.Sum(nil)
	return set, nil
}

// response is without a nonce.
func (s *secrets) response() (*discoveryv3.DiscoveryResponse, error) {
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: secretType, VersionInfo: hex.EncodeToString(s.digest[:8])}
	for _, secret := range s.list {
		packed, err := anypb.New(secret)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "secret %s: %v", secret.Name, err)
		}
		resp.Resources = append(resp.Resources, packed)
	}
	return resp, nil
}

type builder struct {
	Names
	grant  workload.Grant
	spiffe bool
}

// secret makes the secret of this name, or nil where there is none for this
// workload, and returns what of it is public.
func (b builder) secret(name string) (*tlsv3.Secret, []byte, error) {
	switch {
	case name == "":
		return nil, nil, nil
	case name == b.DefaultBundleName:
		return b.bundles(name, b.grant.Bundle)
	case name == b.DefaultAllBundlesName:
		if !b.spiffe {
			return nil, nil, status.Errorf(codes.InvalidArgument,
				"%s needs the SPIFFE validator, which this Envoy lacks (it came with 1.18) or does not want: ask for %s or a trust domain", name, b.DefaultBundleName)
		}
		return b.bundles(name, b.domains()...)
	case name == b.DefaultSVIDName:
		for _, id := range b.grant.Identities {
			if id.Chain != nil {
				return certificate(name, id)
			}
		}
		return nil, nil, errUnsigned
	}
	for _, bundle := range b.domains() {
		if name == bundle.TrustDomain().IDString() {
			return b.bundles(name, bundle)
		}
	}
	known := false
	for _, id := range b.grant.Identities {
		if name == id.ID.String() {
			if known = true; id.Chain != nil {
				return certificate(name, id)
			}
		}
	}
	if known {
		return nil, nil, errUnsigned
	}
	return nil, nil, nil
}

// domains are the bundles, our own first. One of another trust domain that has
// revoked all of its X.509 authorities is none of them: to Envoy, a validation
// context with an empty trusted_ca is one that verifies nothing.
func (b builder) domains() []*workload.Bundle {
	all := []*workload.Bundle{b.grant.Bundle}
	for _, f := range b.grant.Federated {
		if len(f.X509()) > 0 {
			all = append(all, f)
		}
	}
	return all
}

var errNoCRL = status.Error(codes.Unavailable, "no CRL from the issuer at the moment, and the agent's sds.crl wants one with each bundle")

var errUnsigned = status.Error(codes.Unavailable, "no valid X509-SVID at the moment: the issuer has not signed one")

// everything names all that has a name of its own and can be had now.
func (b builder) everything() []string {
	var names []string
	for _, d := range b.domains() {
		names = append(names, d.TrustDomain().IDString())
	}
	for _, id := range b.grant.Identities {
		if id.Chain != nil {
			names = append(names, id.ID.String())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func certificate(name string, id *workload.Identity) (*tlsv3.Secret, []byte, error) {
	chain, err := certificatesPEM(id.Chain)
	if err != nil {
		return nil, nil, err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: id.Key})
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}, chain, nil
}

// bundles makes one validation context. With the SPIFFE validator each bundle
// vouches for names of its own trust domain only. Without, it is Envoy's
// configuration that has to compare the peer's name, and a bundle stands alone:
// two in one file would be one trust domain.
func (b builder) bundles(name string, list ...*workload.Bundle) (*tlsv3.Secret, []byte, error) {
	var public bytes.Buffer
	if !b.spiffe {
		ca, err := certificatesPEM(list[0].X509())
		if err != nil {
			return nil, nil, err
		}
		c := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca)}
		if !b.CRL || list[0].TrustDomain() != b.grant.Bundle.TrustDomain() {
			return validation(name, c), ca, nil
		}
		if len(b.grant.CRLs) == 0 {
			return nil, nil, errNoCRL
		}
		// An authority without a list has all refused that it signed.
		lists := crlsPEM(b.grant.CRLs)
		c.Crl, c.OnlyVerifyLeafCertCrl = inline(lists), true
		return validation(name, c), append(ca, lists...), nil
	}
	config := &tlsv3.SPIFFECertValidatorConfig{}
	for _, bundle := range list {
		if len(bundle.X509()) == 0 {
			continue
		}
		ca, err := certificatesPEM(bundle.X509())
		if err != nil {
			return nil, nil, err
		}
		public.WriteString(strconv.Quote(bundle.TrustDomain().Name()))
		public.Write(ca)
		config.TrustDomains = append(config.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{
			Name: bundle.TrustDomain().Name(), TrustBundle: inline(ca),
		})
	}
	packed, err := anypb.New(config)
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "validator: %v", err)
	}
	return validation(name, &tlsv3.CertificateValidationContext{
		CustomValidatorConfig: &corev3.TypedExtensionConfig{Name: spiffeValidator, TypedConfig: packed},
	}), public.Bytes(), nil
}

func validation(name string, c *tlsv3.CertificateValidationContext) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: c}}
}

func inline(data []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: data}}
}

func crlsPEM(der [][]byte) (out []byte) {
	for _, list := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})...)
	}
	return out
}

func certificatesPEM(der []byte) ([]byte, error) {
	certs, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "certificates: %v", err)
	}
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out, nil
}

// validator tells whether this Envoy gets bundles for its SPIFFE validator: it
// says that it is 1.18 or newer, and neither its metadata nor, where those are
// silent, our configuration is against it.
func (s *service) validator(node *corev3.Node) bool {
	disabled := s.c.Names.DisableSPIFFECertValidation
	switch v := node.GetMetadata().GetFields()[metadataKey].GetKind().(type) {
	case *structpb.Value_BoolValue:
		disabled = v.BoolValue
	case *structpb.Value_StringValue:
		if own, err := strconv.ParseBool(v.StringValue); err == nil {
			disabled = own
		}
	}
	version := node.GetUserAgentBuildVersion().GetVersion()
	return !disabled && (version.GetMajorNumber() > 1 || version.GetMajorNumber() == 1 && version.GetMinorNumber() > 17)
}

// names are those of a request, each once, sorted.
func names(req *discoveryv3.DiscoveryRequest) []string {
	list := slices.DeleteFunc(slices.Clone(req.GetResourceNames()), func(n string) bool { return n == "" })
	slices.Sort(list)
	return slices.Compact(list)
}

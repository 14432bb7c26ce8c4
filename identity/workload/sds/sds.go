// Package sds serves Envoy's secret discovery, version 3, on the socket of the
// Workload API and to the same callers
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/security/secret).
//
// What a resource name stands for is as SPIRE's agent has it, so that a
// configuration of Envoy that was made for it works here:
//
//	default                    the default X509-SVID with its key
//	spiffe://example.org/web   the X509-SVID of that name
//	ROOTCA                     the bundle of our own trust domain
//	spiffe://example.org       the bundle of that trust domain
//	ALL                        our own and the federated bundles, each for its trust domain
//	no name at all             everything that has a name of its own
//
// Envoy never lets go of a secret: it uses what it has until it gets another.
// So a certificate that is no longer the caller's is replaced, before the stream
// ends, by one that nobody trusts.
//
// DeltaSecrets answers Unimplemented, as SPIRE's agent does: it saves sending
// again what has not changed, and ours is one certificate and its key.
package sds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/workload"
)

// Names configures what is called how. It is part of the configuration of
// writ-agent.
type Names struct {
	// Name under which Envoy asks for the default X509-SVID.
	DefaultSVIDName string `yaml:"default_svid_name"`
	// Name under which Envoy asks for the bundle of the own trust domain.
	DefaultBundleName string `yaml:"default_bundle_name"`
	// Name under which Envoy asks for all bundles, the federated ones too.
	DefaultAllBundlesName string `yaml:"default_all_bundles_name"`
	// Give bundles as plain CA certificates, without Envoy's SPIFFE validator.
	// An Envoy can choose for itself with the node metadata of this name.
	DisableSPIFFECertValidation bool `yaml:"disable_spiffe_cert_validation"`
	// Give the issuer's certificate revocation lists with the bundle of the own trust
	// domain to each Envoy that takes plain CA certificates: Envoy's SPIFFE validator
	// looks at none.
	CRL bool `yaml:"crl"`
}

// DefaultNames are those of SPIRE's agent.
func DefaultNames() Names {
	return Names{DefaultSVIDName: "default", DefaultBundleName: "ROOTCA", DefaultAllBundlesName: "ALL"}
}

// Validate finds names that stand for two things. at makes an error at a key.
func (n Names) Validate(at func(key, format string, args ...any) error) error {
	if n.DefaultSVIDName != "" && (n.DefaultSVIDName == n.DefaultBundleName || n.DefaultSVIDName == n.DefaultAllBundlesName) {
		return at("default_svid_name", "%q is the name of bundles as well", n.DefaultSVIDName)
	}
	if n.DefaultBundleName != "" && n.DefaultBundleName == n.DefaultAllBundlesName {
		return at("default_bundle_name", "%q is the default_all_bundles_name as well: make one of them empty", n.DefaultBundleName)
	}
	return nil
}

// Config is what the service needs.
type Config struct {
	Names Names
	Log   *slog.Logger
	// Rejected, if given, is told of each response that an Envoy did not take.
	Rejected func()
}

type service struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	api *workload.Server
	c   Config
}

// Register adds the service to a server that does not serve yet.
func Register(api *workload.Server, c Config) error {
	at := func(key, format string, args ...any) error { return fmt.Errorf("sds."+key+": "+format, args...) }
	if err := c.Names.Validate(at); err != nil {
		return err
	}
	if api == nil || c.Log == nil {
		return errors.New("sds: needs a server and a log")
	}
	if c.Rejected == nil {
		c.Rejected = func() {}
	}
	secretv3.RegisterSecretDiscoveryServiceServer(api.Registrar(), &service{api: api, c: c})
	return nil
}

// FetchSecrets answers once.
func (s *service) FetchSecrets(ctx context.Context, req *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	if err := checkType(req); err != nil {
		return nil, err
	}
	caller, err := s.api.Caller(ctx)
	if err != nil {
		return nil, err
	}
	g, _, err := caller.Grant(ctx)
	if err != nil {
		return nil, err
	}
	set, err := s.build(g, names(req), s.validator(req.GetNode()))
	if err != nil {
		return nil, err
	}
	resp, err := set.response()
	if err != nil {
		return nil, err
	}
	if err := caller.Alive(); err != nil {
		return nil, err
	}
	return resp, nil
}

// DeltaSecrets is not served.
func (s *service) DeltaSecrets(secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return status.Error(codes.Unimplemented, "delta discovery is not served: use api_type GRPC in the sds_config")
}

func checkType(req *discoveryv3.DiscoveryRequest) error {
	if t := req.GetTypeUrl(); t != "" && t != secretType {
		return status.Errorf(codes.InvalidArgument, "type_url is %q: only secrets (%s) are served here", t, secretType)
	}
	return nil
}

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/identity"
)

// remoteScheme marks an admin listener in --server.
const remoteScheme = "tcp://"

// workloadAPITimeout bounds the wait for the own SVID.
const workloadAPITimeout = 10 * time.Second

// dialRemote connects to an admin listener, with the SVID in --svid-dir or else
// that of the Workload API. The other end must be the control plane of the own
// trust domain.
func (a *app) dialRemote() (*grpc.ClientConn, error) {
	svid, bundle, err := a.ownSVID()
	if err != nil {
		return nil, err
	}
	// One command is short: the SVID that it begins with lasts.
	config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(identity.ServerID(svid.ID.TrustDomain())))
	config.MinVersion = tls.VersionTLS13
	return grpc.NewClient("passthrough:///"+strings.TrimPrefix(a.server, remoteScheme), append(noteAnswered(), grpc.WithTransportCredentials(credentials.NewTLS(config)))...)
}

func (a *app) ownSVID() (*x509svid.SVID, *x509bundle.Bundle, error) {
	if a.svidDir == "" {
		ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(a.patience, workloadAPITimeout))
		defer cancel()
		address := (&svidFetch{}).address(a)
		x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(address))
		if err != nil {
			return nil, nil, fmt.Errorf("own SVID, to connect to %s: %w (or name a directory with --svid-dir)", a.server, explainWorkloadAPI(err, address))
		}
		svid := x.DefaultSVID()
		bundle, err := x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		return svid, bundle, err
	}
	file := func(name string) string { return filepath.Join(a.svidDir, name) }
	svid, err := x509svid.Load(file("svid.pem"), file("key.pem"))
	if err != nil {
		return nil, nil, fmt.Errorf("own SVID, to connect to %s: %w", a.server, err)
	}
	if end := svid.Certificates[0].NotAfter; !time.Now().Before(end) {
		return nil, nil, fmt.Errorf("the SVID in %s expired at %s: fetch another", a.svidDir, end.UTC().Format(time.RFC3339))
	}
	td := svid.ID.TrustDomain()
	bundle, err := x509bundle.Load(td, file("bundle.pem"))
	if err != nil {
		return nil, nil, fmt.Errorf("trust bundle, to connect to %s: %w", a.server, err)
	}
	return svid, bundle, nil
}

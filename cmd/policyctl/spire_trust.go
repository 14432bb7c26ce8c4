package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

const spireTrustHelp = `Put the authorities of this control plane into the bundle of another server of the
same trust domain, and that server's into the bundle here. Workloads then verify
SVIDs of either, whichever agent they get theirs from.

Authorities change. Both sides publish a new one hours before it signs (with a
life of 24 hours: 8), so the exchange has to be made again within that time for
as long as both servers issue: --every does.

An authority that is tainted or expired is not carried over. What was put into a
bundle stays there until it expires or is revoked.`

func newSPIRETrustCmd(a *app) *cobra.Command {
	var with string
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "trust --with unix:///PATH",
		Short: "Have this control plane and a spire-server recognise each other's SVIDs",
		Long:  spireTrustHelp,
		Example: `  policyctl spire trust --with unix:///run/spire-server/private/api.sock
  policyctl spire trust --with unix:///run/spire-server/private/api.sock --every 10m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 0 || every > 0 && every < time.Second {
				return fmt.Errorf("spire trust: --every %v: want at least 1s", every)
			}
			for {
				err := a.exchangeTrust(cmd.Context(), with)
				switch {
				case err == nil && every == 0:
					return nil
				case cmd.Context().Err() != nil:
					return nil // told to stop
				case err != nil && every == 0:
					return fmt.Errorf("spire trust: %w", err)
				case err != nil:
					fmt.Fprintf(a.stderr, "policyctl: spire trust: %v; trying again in %s\n", err, every)
				}
				timer := time.NewTimer(every)
				select {
				case <-cmd.Context().Done():
					timer.Stop()
					return nil
				case <-timer.C:
				}
			}
		},
	}
	cmd.Flags().StringVar(&with, "with", "", "socket of the other server, unix:///path (required)")
	cmd.Flags().DurationVar(&every, "every", 0, "go on, and exchange again after this time (default: once)")
	_ = cmd.MarkFlagRequired("with")
	return cmd
}

// trustExchange says what was new to each side.
type trustExchange struct {
	TrustDomain string `json:"trust_domain"`
	// Here is what this control plane did not know, There what the other did
	// not.
	Here  trustAdded `json:"here"`
	There trustAdded `json:"there"`
}

type trustAdded struct {
	X509 int `json:"x509_authorities"`
	JWT  int `json:"jwt_authorities"`
}

func (a *app) exchangeTrust(ctx context.Context, with string) error {
	other, err := dialSPIRE(with)
	if err != nil {
		return err
	}
	defer other.Close()
	own, err := a.dial()
	if err != nil {
		return err
	}
	defer own.Close()
	there, err := bundlev1.NewBundleClient(other).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return fmt.Errorf("%s: %w", with, rpcError(err))
	}
	here, err := bundlev1.NewBundleClient(own).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return fmt.Errorf("this control plane: %w", rpcError(err))
	}
	if here.GetTrustDomain() != there.GetTrustDomain() {
		return fmt.Errorf("%s is of trust domain %s, this control plane of %s: between trust domains there is federation (policyctl federation)", with, there.GetTrustDomain(), here.GetTrustDomain())
	}
	result := trustExchange{TrustDomain: here.GetTrustDomain()}
	if result.Here, err = appendMissing(ctx, own, here, there); err != nil {
		return fmt.Errorf("this control plane: %w", err)
	}
	if result.There, err = appendMissing(ctx, other, there, here); err != nil {
		return fmt.Errorf("%s: %w", with, err)
	}
	return a.emit(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "new here: %d X.509 and %d JWT authorities; new there: %d and %d\n", result.Here.X509, result.Here.JWT, result.There.X509, result.There.JWT)
		return err
	})
}

// appendMissing gives a server the sound authorities of more that its bundle
// does not hold.
func appendMissing(ctx context.Context, conn *grpc.ClientConn, has, more *types.Bundle) (trustAdded, error) {
	req := &bundlev1.AppendBundleRequest{}
	for _, a := range more.GetX509Authorities() {
		if !a.GetTainted() && !hasX509(has, a) {
			req.X509Authorities = append(req.X509Authorities, a)
		}
	}
	for _, k := range more.GetJwtAuthorities() {
		if !k.GetTainted() && (k.GetExpiresAt() == 0 || time.Unix(k.GetExpiresAt(), 0).After(time.Now())) && !hasJWT(has, k) {
			req.JwtAuthorities = append(req.JwtAuthorities, k)
		}
	}
	added := trustAdded{X509: len(req.X509Authorities), JWT: len(req.JwtAuthorities)}
	if added == (trustAdded{}) {
		return added, nil
	}
	_, err := bundlev1.NewBundleClient(conn).AppendBundle(ctx, req)
	if err != nil {
		return trustAdded{}, rpcError(err)
	}
	return added, nil
}

func hasX509(b *types.Bundle, a *types.X509Certificate) bool {
	for _, known := range b.GetX509Authorities() {
		if bytes.Equal(known.GetAsn1(), a.GetAsn1()) {
			return true
		}
	}
	return false
}

func hasJWT(b *types.Bundle, k *types.JWTKey) bool {
	for _, known := range b.GetJwtAuthorities() {
		if known.GetKeyId() == k.GetKeyId() {
			return true
		}
	}
	return false
}

// Package oidc serves what verifiers of OpenID Connect tokens need in order to
// verify JWT-SVIDs: the discovery document and the keys (OpenID Connect
// Discovery 1.0, section 4; RFC 7517). There is no other endpoint: nobody logs
// in here.
package oidc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-dev/writ/identity/registry"
)

// Discovery is the path of the discovery document below the issuer's URL.
const Discovery = "/.well-known/openid-configuration"

const keysPath = "/keys"

// Config of a Handler.
type Config struct {
	// Issuer is the URL that verifiers know, and the iss claim.
	Issuer string
	// Own returns the trust bundle there is now. Of it only the keys of JWT-SVIDs
	// are shown.
	Own func() *registry.FederatedBundle
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// Handler serves discovery document and keys, below the path of the issuer's
// URL, to anybody.
func Handler(c Config) (http.Handler, error) {
	u, err := url.Parse(c.Issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer URL: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	base := strings.TrimSuffix(u.EscapedPath(), "/")
	mux := http.NewServeMux()
	for path, content := range map[string]func() ([]byte, error){Discovery: c.discovery, keysPath: c.keys} {
		mux.HandleFunc("GET "+base+path, func(rw http.ResponseWriter, req *http.Request) {
			body, err := content()
			if err != nil {
				http.Error(rw, "the keys cannot be written", http.StatusInternalServerError)
				return
			}
			header := rw.Header()
			header.Set("Content-Type", "application/json")
			// New keys are shown long before they sign, and a key that was
			// revoked must not live on in caches.
			header.Set("Cache-Control", "max-age=60")
			header.Set("Content-Length", strconv.Itoa(len(body)))
			if req.Method == http.MethodGet {
				_, _ = rw.Write(body)
			}
		})
	}
	return mux, nil
}

func (c *Config) discovery() ([]byte, error) {
	set, err := c.set()
	if err != nil {
		return nil, err
	}
	algorithms := []string{string(jose.ES256)} // what signs unless there is a key of another kind
	for _, key := range set.Keys {
		if !slices.Contains(algorithms, key.Algorithm) {
			algorithms = append(algorithms, key.Algorithm)
		}
	}
	return json.MarshalIndent(struct {
		Issuer        string   `json:"issuer"`
		Keys          string   `json:"jwks_uri"`
		Authorization string   `json:"authorization_endpoint"`
		Responses     []string `json:"response_types_supported"`
		Subjects      []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}{c.Issuer, c.Issuer + keysPath, "", []string{"id_token"}, []string{"public"}, algorithms}, "", "  ")
}

func (c *Config) keys() ([]byte, error) {
	set, err := c.set()
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(set, "", "  ")
}

func (c *Config) set() (*jose.JSONWebKeySet, error) {
	set := &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, a := range c.Own().JWTAuthorities {
		if !a.ExpiresAt.IsZero() && !c.Now().Before(a.ExpiresAt) {
			continue
		}
		key, err := x509.ParsePKIXPublicKey(a.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("JWT authority %s: %w", a.KeyID, err)
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: a.KeyID, Use: "sig", Algorithm: algorithm(key)})
	}
	return set, nil
}

// algorithm is the one that our issuer signs with a key of this kind.
func algorithm(key any) string {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			return string(jose.ES384)
		case elliptic.P521():
			return string(jose.ES512)
		}
		return string(jose.ES256)
	case *rsa.PublicKey:
		return string(jose.RS256)
	}
	return ""
}

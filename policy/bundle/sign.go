package bundle

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	opa "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/writ-dev/writ/policy"
)

// Scopes keep a signature to its purpose: a publisher's signature of sources
// is never taken for a control plane's signature of a slice, even if one key
// made both.
const (
	ScopeSources = ""
	ScopeSlice   = "writ-slice"
)

// Keys are public keys that may sign, by KeyID.
type Keys map[string]*ecdsa.PublicKey

// NewKeys makes Keys of P-256 public keys.
func NewKeys(public ...*ecdsa.PublicKey) (Keys, error) {
	keys := make(Keys, len(public))
	for _, p := range public {
		id, err := KeyID(p)
		if err != nil {
			return nil, err
		}
		keys[id] = p
	}
	return keys, nil
}

// LoadKeys reads the keys of PEM files; none for no file. An error names the
// file.
func LoadKeys(files ...string) (Keys, error) {
	var all Keys
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		keys, err := ParseKeys(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if all == nil {
			all = Keys{}
		}
		maps.Copy(all, keys)
	}
	return all, nil
}

// ParseKeys reads all P-256 public keys (PUBLIC KEY, PKIX) of a PEM file.
func ParseKeys(data []byte) (Keys, error) {
	var public []*ecdsa.PublicKey
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return nil, errors.New("policy key: this is a private key: want its public half (openssl pkey -in KEY -pubout)")
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("policy key: PEM block %q: want PUBLIC KEY", block.Type)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("policy key: %w", err)
		}
		p, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("policy key: want ECDSA P-256, got %T", key)
		}
		public = append(public, p)
	}
	if len(public) == 0 || len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("policy key: no PEM public key, or something that is not PEM")
	}
	return NewKeys(public...)
}

// KeyID names a public key: the first 128 bits, in hex, of the SHA-256 of its
// PKIX form.
func KeyID(public crypto.PublicKey) (string, error) {
	p, ok := public.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P256() {
		return "", fmt.Errorf("policy key: want ECDSA P-256, got %T", public)
	}
	der, err := x509.MarshalPKIXPublicKey(p)
	if err != nil {
		return "", fmt.Errorf("policy key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:keyIDLength/2]), nil
}

// keyIDLength is the length of a KeyID, hex digits.
const keyIDLength = 32

// signed is the payload of the one JWS in .signatures.json.
type signed struct {
	Files []opa.FileInfo `json:"files"`
	Scope string         `json:"scope,omitempty"`
}

// Sign makes the .signatures.json of the content. The key is ECDSA P-256 and
// may live in hardware.
func (c Content) Sign(key crypto.Signer, scope string) ([]byte, error) {
	id, err := KeyID(key.Public())
	if err != nil {
		return nil, err
	}
	files := make([]opa.FileInfo, len(c))
	for i, f := range c {
		sum, err := hashFile(f)
		if err != nil {
			return nil, err
		}
		files[i] = opa.NewFile(f.Path, hex.EncodeToString(sum), string(opa.SHA256))
	}
	payload, err := json.Marshal(signed{Files: files, Scope: scope})
	if err != nil {
		return nil, fmt.Errorf("sign policy: %w", err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: cryptosigner.Opaque(key), KeyID: id}}, nil)
	if err != nil {
		return nil, fmt.Errorf("sign policy: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("sign policy: %w", err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("sign policy: %w", err)
	}
	return json.Marshal(opa.SignaturesConfig{Signatures: []string{token}})
}

// hashFile hashes as OPA does: data documents by their meaning, so that
// whitespace does not count, other files by their bytes.
func hashFile(f File) ([]byte, error) {
	var value any = f.Content
	if opa.IsStructuredDoc(f.Path) {
		value = nil
		if problem := checkPlain(f); problem != nil {
			return nil, policy.Refused{*problem}
		}
		if err := util.Unmarshal(f.Content, &value); err != nil {
			return nil, fmt.Errorf("sign policy: %s: %w", f.Path, err)
		}
	}
	hasher, err := opa.NewSignatureHasher(opa.SHA256)
	if err != nil {
		return nil, err
	}
	return hasher.HashFile(value)
}

// SignedDigest names the content by what a signature is under: data counts by
// its meaning, so that what somebody else wrote otherwise under the same
// signature is still the same.
func (c Content) SignedDigest() ([32]byte, error) {
	h := sha256.New()
	h.Write([]byte("writ signed content v1\n"))
	for _, f := range c {
		sum, err := hashFile(f)
		if err != nil {
			return [32]byte{}, err
		}
		h.Write([]byte(f.Path + "\n")) // No path has a control character.
		h.Write(sum)
	}
	return [32]byte(h.Sum(nil)), nil
}

// Verify checks that one of keys signed exactly the files of the archive for
// the scope, with ES256 and SHA-256, and returns the id of that key.
func (a *Archive) Verify(keys Keys, scope string) (string, error) {
	if a.signatures == nil {
		return "", errors.New("the bundle is not signed")
	}
	dec := json.NewDecoder(bytes.NewReader(a.signatures))
	dec.DisallowUnknownFields()
	var config opa.SignaturesConfig
	err := dec.Decode(&config)
	// OPA names its own way of signing a plugin, too.
	if err != nil || config.Plugin != "" && config.Plugin != "_default" || len(config.Signatures) != 1 {
		return "", errors.New("the bundle's .signatures.json is not one signature")
	}
	jws, err := jose.ParseSignedCompact(config.Signatures[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return "", fmt.Errorf("signature of the bundle: %w", err)
	}
	id, payload, err := signer(jws, keys)
	if err != nil {
		return "", err
	}
	var s signed
	if err := json.Unmarshal(payload, &s); err != nil {
		return "", fmt.Errorf("signature of the bundle: %w", err)
	}
	if s.Files == nil {
		// An approval or an envelope by the same key names no files, and is no
		// signature of a bundle without any.
		return "", errors.New("signature of the bundle: what is signed is not a list of files")
	}
	if s.Scope != scope {
		return "", fmt.Errorf("signature of the bundle is for scope %q, not %q", s.Scope, scope)
	}
	return id, a.compare(s.Files)
}

// signer verifies the signature and finds whose it is. It names the key by its
// id, or, when stock OPA made it, by a name of the publisher's own choice
// ("default" unless told): then each key is tried, since what counts is which
// one verifies.
func signer(jws *jose.JSONWebSignature, keys Keys) (id string, payload []byte, err error) {
	named := jws.Signatures[0].Protected.KeyID
	if keys[named] != nil {
		if payload, err = jws.Verify(keys[named]); err != nil {
			return "", nil, fmt.Errorf("signature of the bundle by key %s does not verify", named)
		}
		return named, payload, nil
	}
	if _, err := hex.DecodeString(named); err == nil && len(named) == keyIDLength {
		return "", nil, fmt.Errorf("the bundle is signed by key %q, which is not trusted here", named)
	}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		if payload, err := jws.Verify(keys[id]); err == nil {
			return id, payload, nil
		}
	}
	return "", nil, fmt.Errorf("the bundle is signed by a key named %q, which is not trusted here", named)
}

func (a *Archive) compare(files []opa.FileInfo) error {
	left := make(map[string]opa.FileInfo, len(files))
	for _, f := range files {
		if _, twice := left[f.Name]; twice {
			return fmt.Errorf("signature of the bundle names %s twice", f.Name)
		}
		left[f.Name] = f
	}
	for _, f := range a.Content {
		if problem := checkPlain(f); problem != nil { // OPA decodes data to hash it.
			return policy.Refused{*problem}
		}
		info, ok := left[f.Path]
		if !ok {
			return fmt.Errorf("%s is not covered by the signature", f.Path)
		}
		if info.Algorithm != string(opa.SHA256) {
			return fmt.Errorf("%s is signed by hash %q: want SHA-256", f.Path, info.Algorithm)
		}
		if err := opa.VerifyBundleFile(f.Path, *bytes.NewBuffer(f.Content), left); err != nil {
			return fmt.Errorf("signature of the bundle: %w", err)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("files covered by the signature are missing: %v", slices.Sorted(maps.Keys(left)))
	}
	return nil
}

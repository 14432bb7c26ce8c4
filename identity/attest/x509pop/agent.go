package x509pop

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
)

// Config names the files of the agent's half.
type Config struct {
	// File with the certificate of this machine (PEM), intermediates behind it.
	Cert string
	// File with its private key (PEM): RSA or ECDSA.
	Key string
	// File with more intermediates (PEM).
	Intermediates string
}

// Attestor proves the node. The files are read for each attestation, so that a
// certificate may be renewed under a running agent.
type Attestor struct{ Files Config }

// maxChallenge is far more bytes than a challenge has.
const maxChallenge = 4096

// Type is the method's name on the wire.
func (Attestor) Type() string { return Type }

// Begin returns the payload and what answers the challenge that follows it.
func (a Attestor) Begin(context.Context) (payload []byte, answer func(challenge []byte) ([]byte, error), err error) {
	pair, err := tls.LoadX509KeyPair(a.Files.Cert, a.Files.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("x509pop: %w", err)
	}
	chain := pair.Certificate
	if a.Files.Intermediates != "" {
		more, err := certificates(a.Files.Intermediates)
		if err != nil {
			return nil, nil, fmt.Errorf("x509pop: %w", err)
		}
		chain = append(chain, more...)
	}
	if payload, err = json.Marshal(Data{Certificates: chain}); err != nil {
		return nil, nil, err
	}
	return payload, func(question []byte) ([]byte, error) {
		var c Challenge
		if err := Decode(question, maxChallenge, &c); err != nil {
			return nil, fmt.Errorf("x509pop: challenge: %w", err)
		}
		r, err := Respond(pair.PrivateKey, &c)
		if err != nil {
			return nil, fmt.Errorf("x509pop: %w", err)
		}
		return json.Marshal(r)
	}, nil
}

func certificates(file string) ([][]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var found [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			found = append(found, block.Bytes)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no certificate (PEM) in %s", file)
	}
	return found, nil
}

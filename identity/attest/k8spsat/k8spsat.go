// Package k8spsat attests a node by the projected service account token of the
// agent's pod, which says in which pod on which node it runs. This is the
// agent's half, and what both halves send: the message is that of SPIRE's
// k8s_psat, JSON inside AttestAgent. No challenge follows.
package k8spsat

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// Type is the name of this attestor in SPIRE's server API.
const Type = "k8s_psat"

// DefaultTokenFile is where deployments that were made for SPIRE put the token.
const DefaultTokenFile = "/var/run/secrets/tokens/spire-agent"

// MaxToken is more bytes than a service account token has.
const MaxToken = 32 << 10

// Data is the payload.
type Data struct {
	Cluster string `json:"cluster"`
	Token   string `json:"token"`
}

// Config of the agent's half.
type Config struct {
	// Name of the cluster, as the issuer's configuration has it.
	Cluster string
	// File with the projected service account token;
	// /var/run/secrets/tokens/spire-agent when left out.
	TokenFile string
}

// Attestor proves the node. The token is read for each attestation, since the
// kubelet replaces it.
type Attestor struct{ Config Config }

// Type is the method's name on the wire.
func (Attestor) Type() string { return Type }

// Begin returns the payload; there is nothing to answer.
func (a Attestor) Begin(context.Context) (payload []byte, answer func([]byte) ([]byte, error), err error) {
	file := a.Config.TokenFile
	if file == "" {
		file = DefaultTokenFile
	}
	token, err := readToken(file)
	if err != nil {
		return nil, nil, fmt.Errorf("k8s_psat: service account token: %w", err)
	}
	payload, err = json.Marshal(Data{Cluster: a.Config.Cluster, Token: token})
	return payload, func([]byte) ([]byte, error) {
		return nil, fmt.Errorf("%s answers no challenge", Type)
	}, err
}

// readToken never quotes what it read.
func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", fmt.Errorf("%s is empty", file)
	case len(data) > MaxToken:
		return "", fmt.Errorf("%s has more than %d bytes", file, MaxToken)
	}
	return token, nil
}

// Package jointoken attests a node with a join token: a secret that an
// administrator created and that can be used once. This is the agent's half.
//
// A token comes from a file, from standard input or from the environment, never
// from the command line, which every process on the machine can read.
package jointoken

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// Type is the name of this attestor in SPIRE's server API.
const Type = "join_token"

// Env is the environment variable that may hold the token.
const Env = "WRIT_JOIN_TOKEN"

// maxToken is far more bytes than any token has.
const maxToken = 4096

// Data is the attestation payload for a token. No challenge follows.
func Data(token string) *types.AttestationData {
	return &types.AttestationData{Type: Type, Payload: []byte(token)}
}

// Read reads the token from the file, from stdin where file is "-", or with no
// file from env, the value of WRIT_JOIN_TOKEN. Without any it returns "".
func Read(file string, stdin io.Reader, env string) (string, error) {
	switch file {
	case "":
		if env == "" {
			return "", nil
		}
		return parse(Env, []byte(env))
	case "-":
		data, err := io.ReadAll(io.LimitReader(stdin, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("read join token from standard input: %w", err)
		}
		return parse("standard input", data)
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read join token: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("read join token: %w", err)
	}
	return parse(file, data)
}

// parse takes the one word that data holds. Errors never quote it.
func parse(where string, data []byte) (string, error) {
	token := strings.TrimSpace(string(data))
	var err error
	switch {
	case token == "":
		err = errors.New("it is empty")
	case len(data) > maxToken:
		err = fmt.Errorf("it has more than %d bytes", maxToken)
	case strings.ContainsFunc(token, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == '/' }):
		err = errors.New("it is not a single word of printable characters without '/'")
	}
	if err != nil {
		return "", fmt.Errorf("join token in %s: %w", where, err)
	}
	return token, nil
}

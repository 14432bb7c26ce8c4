package rules

import (
	"strings"

	"github.com/writ-dev/writ/policy"
)

// fieldKind is what can be asked of a field in when.
type fieldKind uint8

const (
	textField fieldKind = iota
	wordField
	addressField
	numberField
	// setField has any number of texts: a header, a query parameter.
	setField
)

type fieldInfo struct {
	kind          fieldKind
	words         []string
	request, grpc bool
}

// fields are the fields of input that when can name, in their order there.
// Headers and query parameters are named with theirs.
var fields = []struct {
	name string
	info fieldInfo
}{
	{"direction", fieldInfo{kind: wordField, words: []string{policy.Inbound}}},
	{"layer", fieldInfo{kind: wordField, words: []string{policy.LayerConnection, policy.LayerRequest}}},
	{"source.id", fieldInfo{}},
	{"source.trust_domain", fieldInfo{}},
	{"source.path", fieldInfo{}},
	{"source.authn", fieldInfo{kind: wordField, words: []string{policy.AuthnMTLS, policy.AuthnToken, policy.AuthnNone}}},
	{"destination.id", fieldInfo{}},
	{"destination.port", fieldInfo{kind: numberField}},
	{"request.protocol", fieldInfo{kind: wordField, words: []string{policy.HTTP, policy.GRPC}, request: true}},
	{"request.method", fieldInfo{request: true}},
	{"request.host", fieldInfo{request: true}},
	{"request.path", fieldInfo{request: true}},
	{"request.grpc.service", fieldInfo{request: true, grpc: true}},
	{"request.grpc.method", fieldInfo{request: true, grpc: true}},
	{fieldContentLength, fieldInfo{kind: numberField, request: true}},
	{"connection.peer_ip", fieldInfo{kind: addressField}},
	{"connection.client_ip", fieldInfo{kind: addressField}},
	{"connection.tls_version", fieldInfo{}},
	{"connection.sni", fieldInfo{}},
	{"connection.alpn", fieldInfo{}},
	{"token_status", fieldInfo{kind: wordField, words: []string{policy.TokenAbsent, policy.TokenValid, policy.TokenInvalid}}},
}

const fieldContentLength = "request.content_length"

// lookUp finds the field and, of a header or query parameter, its name.
func lookUp(written string) (field, name string, info fieldInfo, ok bool) {
	for _, f := range fields {
		if f.name == written {
			return written, "", f.info, true
		}
	}
	for _, set := range []string{"request.headers", "request.query"} {
		if name, found := strings.CutPrefix(written, set+"."); found {
			return set, name, fieldInfo{kind: setField, request: true}, true
		}
	}
	return "", "", fieldInfo{}, false
}

func fieldNames() []string {
	names := make([]string, 0, len(fields)+2)
	for _, f := range fields {
		names = append(names, f.name)
	}
	return append(names, "request.headers.<name>", "request.query.<name>")
}

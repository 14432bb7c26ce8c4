package opa

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// Terms are immutable, so the names of fields are made once.
var (
	keyVersion       = ast.StringTerm("version")
	keyDirection     = ast.StringTerm("direction")
	keyLayer         = ast.StringTerm("layer")
	keySource        = ast.StringTerm("source")
	keyDestination   = ast.StringTerm("destination")
	keyRequest       = ast.StringTerm("request")
	keyTokens        = ast.StringTerm("tokens")
	keyTokenStatus   = ast.StringTerm("token_status")
	keyConnection    = ast.StringTerm("connection")
	keyTime          = ast.StringTerm("time")
	keyID            = ast.StringTerm("id")
	keyTrustDomain   = ast.StringTerm("trust_domain")
	keyPath          = ast.StringTerm("path")
	keyAuthn         = ast.StringTerm("authn")
	keyService       = ast.StringTerm("service")
	keyPort          = ast.StringTerm("port")
	keyProtocol      = ast.StringTerm("protocol")
	keyMethod        = ast.StringTerm("method")
	keyHost          = ast.StringTerm("host")
	keySegments      = ast.StringTerm("segments")
	keyQuery         = ast.StringTerm("query")
	keyHeaders       = ast.StringTerm("headers")
	keyGRPC          = ast.StringTerm("grpc")
	keyContentLength = ast.StringTerm("content_length")
	keyIssuer        = ast.StringTerm("issuer")
	keySubject       = ast.StringTerm("subject")
	keyAudience      = ast.StringTerm("audience")
	keyClaims        = ast.StringTerm("claims")
	keyActor         = ast.StringTerm("actor")
	keyPeerIP        = ast.StringTerm("peer_ip")
	keyClientIP      = ast.StringTerm("client_ip")
	keyTLSVersion    = ast.StringTerm("tls_version")
	keySNI           = ast.StringTerm("sni")
	keyALPN          = ast.StringTerm("alpn")
	version1         = ast.InternedTerm(policy.InputVersion)
)

// value is the input as the policy sees it: what EncodeInput writes, without
// the headers, query parameters and tokens that no rule looks at.
func (r *reads) value(in *policy.Input) (ast.Value, error) {
	fields := make([][2]*ast.Term, 0, 10)
	fields = append(fields,
		ast.Item(keyVersion, version1),
		ast.Item(keyDirection, text(in.Direction)),
		ast.Item(keyLayer, text(in.Layer)),
		ast.Item(keySource, ast.ObjectTerm(
			ast.Item(keyID, text(in.Source.ID)),
			ast.Item(keyTrustDomain, text(in.Source.TrustDomain)),
			ast.Item(keyPath, text(in.Source.Path)),
			ast.Item(keyAuthn, text(in.Source.Authn)),
		)),
		ast.Item(keyDestination, ast.ObjectTerm(
			ast.Item(keyService, text(in.Destination.Service)),
			ast.Item(keyID, text(in.Destination.ID)),
			ast.Item(keyPort, ast.InternedTerm(in.Destination.Port)),
		)),
		ast.Item(keyConnection, ast.ObjectTerm(
			ast.Item(keyPeerIP, text(in.Connection.PeerIP)),
			ast.Item(keyClientIP, text(in.Connection.ClientIP)),
			ast.Item(keyTLSVersion, text(in.Connection.TLSVersion)),
			ast.Item(keySNI, text(in.Connection.SNI)),
			ast.Item(keyALPN, text(in.Connection.ALPN)),
		)),
		ast.Item(keyTime, ast.StringTerm(in.Time.UTC().Format(time.RFC3339Nano))),
	)
	if in.Layer == policy.LayerRequest {
		fields = append(fields, ast.Item(keyRequest, r.request(&in.Request)))
	}
	status := in.TokenStatus
	if status == "" {
		status = policy.TokenAbsent
	}
	fields = append(fields, ast.Item(keyTokenStatus, text(status)))
	if r.tokens {
		tokens, err := tokenTerms(in.Tokens)
		if err != nil {
			return nil, err
		}
		fields = append(fields, ast.Item(keyTokens, tokens))
	}
	return ast.NewObject(fields...), nil
}

func (r *reads) request(q *policy.Request) *ast.Term {
	fields := [][2]*ast.Term{
		ast.Item(keyProtocol, text(q.Protocol)),
		ast.Item(keyMethod, text(q.Method)),
		ast.Item(keyHost, text(q.Host)),
		ast.Item(keyPath, text(q.Path)),
		ast.Item(keySegments, texts(q.Segments)),
		ast.Item(keyQuery, valuesTerm(q.Query, r.query, r.allQuery)),
		ast.Item(keyHeaders, valuesTerm(q.Headers, r.headers, r.allHeaders)),
		ast.Item(keyContentLength, ast.InternedTerm(int(q.ContentLength))),
	}
	if q.Protocol == policy.GRPC {
		fields = append(fields, ast.Item(keyGRPC, ast.ObjectTerm(
			ast.Item(keyService, text(q.GRPCService)),
			ast.Item(keyMethod, text(q.GRPCMethod)),
		)))
	}
	return ast.ObjectTerm(fields...)
}

func valuesTerm(v policy.Values, names map[string]bool, all bool) *ast.Term {
	object := ast.NewObject()
	switch {
	case v == nil:
	case all:
		v.Each(func(name string, values []string) bool {
			object.Insert(text(name), texts(values))
			return true
		})
	default:
		for name := range names {
			if values := v.Get(name); values != nil {
				object.Insert(ast.StringTerm(name), texts(values))
			}
		}
	}
	return ast.NewTerm(object)
}

func tokenTerms(tokens []policy.Token) (*ast.Term, error) {
	terms := make([]*ast.Term, len(tokens))
	for i, t := range tokens {
		claims := ast.Value(ast.NewObject())
		if t.Claims != nil {
			var err error
			if claims, err = ast.InterfaceToValue(t.Claims); err != nil {
				return nil, fmt.Errorf("claims of token %d: %w", i, err)
			}
		}
		terms[i] = ast.ObjectTerm(
			ast.Item(keyIssuer, text(t.Issuer)),
			ast.Item(keySubject, text(t.Subject)),
			ast.Item(keyAudience, texts(t.Audience)),
			ast.Item(keyClaims, ast.NewTerm(claims)),
			ast.Item(keyActor, text(t.Actor)),
		)
	}
	return ast.ArrayTerm(terms...), nil
}

func texts(list []string) *ast.Term {
	terms := make([]*ast.Term, len(list))
	for i, s := range list {
		terms[i] = text(s)
	}
	return ast.ArrayTerm(terms...)
}

// text replaces each byte that is not UTF-8 by U+FFFD, as encoding/json does,
// so that an input replayed from its record is the same input.
func text(s string) *ast.Term {
	if !utf8.ValidString(s) {
		s = string([]rune(s))
	}
	return ast.StringTerm(s)
}

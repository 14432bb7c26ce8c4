package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// algorithms are those of JWT-SVID 2.1.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512}

// jwtBundles judges FetchJWTBundles and gives the own trust domain's keys, nil
// without any.
func (w *workload) jwtBundles(ctx context.Context) *jose.JSONWebKeySet {
	ctx, cancel := context.WithTimeout(withHeader(ctx), w.Timeout)
	defer cancel()
	stream, err := w.api.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
	var m *workloadpb.JWTBundlesResponse
	if err == nil {
		m, err = stream.Recv()
	}
	if err != nil {
		if !unsupported(err) {
			w.Say("jwt-bundles-own", false, "%v", err)
		}
		return nil
	}
	var own *jose.JSONWebKeySet
	for td, doc := range m.GetBundles() {
		var set jose.JSONWebKeySet
		var raw struct{ Keys []map[string]any }
		if err := json.Unmarshal(doc, &set); err != nil {
			w.Say("jwt-bundles-own", false, "%s: %v", td, err)
			continue
		}
		_ = json.Unmarshal(doc, &raw)
		for _, k := range raw.Keys {
			// Use may be left out where all keys are of one: nothing demands it here.
			use, present := k["use"]
			w.Say("jwt-bundles-use", !present || use == "jwt-svid" || use == "sig", "%s: %v", td, use)
			kid, _ := k["kid"].(string)
			w.Say("jwt-bundles-kid", kid != "", "%s: a key has none", td)
		}
		if td == w.domain || w.domain == "" {
			own = &set
		}
	}
	w.Say("jwt-bundles-own", own != nil, "no bundle of %s", w.domain)
	return own
}

func (w *workload) jwt(ctx context.Context, keys *jose.JSONWebKeySet) {
	all, err := w.jwtSVIDs(ctx, "", w.Audience)
	if err != nil || len(all.GetSvids()) == 0 {
		w.Say("jwt-svids", false, "%v", err)
		return
	}
	w.Say("jwt-all", sameSet(jwtIDs(all), w.ids), "%q, of %q", jwtIDs(all), w.ids)
	hints := map[string]bool{}
	for _, s := range all.GetSvids() {
		w.Say("jwt-svids", s.GetSpiffeId() != "" && s.GetSvid() != "", "a field is empty")
		w.Say("jwt-hints", s.GetHint() == "" || !hints[s.GetHint()], "%q twice", s.GetHint())
		hints[s.GetHint()] = true
		w.checkToken(s.GetSpiffeId(), s.GetSvid(), keys)
	}
	id := all.GetSvids()[0].GetSpiffeId()
	one, err := w.jwtSVIDs(ctx, id, w.Audience)
	w.Say("jwt-one", err == nil && sameSet(jwtIDs(one), []string{id}), "%q: %q, %v", id, jwtIDs(one), err)
	_, err = w.jwtSVIDs(ctx, id+"-of-somebody-else", w.Audience)
	w.Say("jwt-other", status.Code(err) == codes.PermissionDenied, "%v", status.Code(err))
	_, err = w.jwtSVIDs(ctx, "")
	w.Say("jwt-no-audience", status.Code(err) == codes.InvalidArgument, "%v", status.Code(err))
	w.validate(ctx, id, all.GetSvids()[0].GetSvid())
}

func (w *workload) checkToken(id, token string, keys *jose.JSONWebKeySet) {
	parts := strings.Split(token, ".")
	w.Say("jwt-compact", len(parts) == 3, "%s: %d parts", id, len(parts))
	if len(parts) != 3 {
		return
	}
	var header, claims map[string]any
	if !decodeSegment(parts[0], &header) || !decodeSegment(parts[1], &claims) {
		w.Say("jwt-compact", false, "%s: a part is no base64url JSON", id)
		return
	}
	alg, _ := header["alg"].(string)
	w.Say("jwt-alg", slices.Contains(algorithms, jose.SignatureAlgorithm(alg)), "%s: %q", id, alg)
	if typ, ok := header["typ"]; ok {
		w.Say("jwt-typ", typ == "JWT" || typ == "JOSE", "%s: %v", id, typ)
	} else {
		w.Say("jwt-typ", true, "")
	}
	for name := range header {
		w.Say("jwt-header", name == "alg" || name == "kid" || name == "typ", "%s: %q", id, name)
	}
	w.Say("jwt-sub", claims["sub"] == id, "%s: %v", id, claims["sub"])
	w.Say("jwt-aud", hasAudience(claims["aud"], w.Audience), "%s: %v", id, claims["aud"])
	exp, ok := claims["exp"].(float64)
	w.Say("jwt-exp", ok && time.Unix(int64(exp), 0).After(time.Now()), "%s: %v", id, claims["exp"])
	w.Say("jwt-signature", verifies(token, header, keys), "%s: no key of the bundle verifies it", id)
}

func hasAudience(aud any, want string) bool {
	switch v := aud.(type) {
	case string:
		return v == want
	case []any:
		return len(v) == 1 && v[0] == want
	}
	return false
}

func decodeSegment(text string, into any) bool {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	return err == nil && json.Unmarshal(raw, into) == nil
}

// verifies tries the key that the token names, every key without a name.
func verifies(token string, header map[string]any, keys *jose.JSONWebKeySet) bool {
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return false
	}
	candidates := keys.Keys
	if kid, ok := header["kid"].(string); ok {
		candidates = keys.Key(kid)
	}
	for _, k := range candidates {
		if _, err := signed.Verify(k.Key); err == nil {
			return true
		}
	}
	return false
}

// validate judges ValidateJWTSVID.
func (w *workload) validate(ctx context.Context, id, token string) {
	ask := func(audience, token string) (*workloadpb.ValidateJWTSVIDResponse, error) {
		ctx, cancel := context.WithTimeout(withHeader(ctx), w.Timeout)
		defer cancel()
		return w.api.ValidateJWTSVID(ctx, &workloadpb.ValidateJWTSVIDRequest{Audience: audience, Svid: token})
	}
	got, err := ask(w.Audience, token)
	if unsupported(err) {
		return
	}
	claims := got.GetClaims().AsMap()
	w.Say("jwt-validate", err == nil && got.GetSpiffeId() == id && claims["sub"] == id && claims["exp"] != nil && claims["aud"] != nil, "%v: %v %v", err, got.GetSpiffeId(), claims)
	for _, bad := range []struct{ id, audience, token string }{
		{"jwt-validate-audience", w.Audience + "-other", token},
		{"jwt-validate-tampered", w.Audience, tampered(token)},
		{"jwt-validate-none", w.Audience, unsigned(token)},
	} {
		_, err := ask(bad.audience, bad.token)
		w.Say(bad.id, err != nil, "it was accepted")
	}
	for _, empty := range [][2]string{{"", token}, {w.Audience, ""}} {
		_, err := ask(empty[0], empty[1])
		w.Say("jwt-validate-empty", status.Code(err) == codes.InvalidArgument, "%v", status.Code(err))
	}
}

// tampered has a signature that differs in its first byte.
func tampered(token string) string {
	at := strings.LastIndex(token, ".") + 1
	other := "A"
	if token[at] == 'A' {
		other = "B"
	}
	return token[:at] + other + token[at+1:]
}

// unsigned says alg none and has no signature.
func unsigned(token string) string {
	parts := strings.Split(token, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
}

package program

import (
	"encoding/json"

	"github.com/writ-dev/writ/policy"
)

// tokenText is the one text of a field of t, before its steps.
func (r *run) tokenText(f *field, t *policy.Token) (s string, ok bool) {
	switch f.Base {
	case TokenIssuer:
		s, ok = t.Issuer, true
	case TokenSubject:
		s, ok = t.Subject, true
	case TokenActor:
		s, ok = t.Actor, true
	case TokenAudience:
		s, ok = element(t.Audience, f.Index)
	case TokenClaim:
		var v any
		if v, ok = r.claim(f, t); ok {
			if s, ok = v.(string); !ok {
				r.odd(f)
			}
		}
	case TokenClaimItem:
		s, ok = r.claimItem(f, t, int(f.Index))
	case TokenClaimKind:
		if v, there := r.claim(f, t); there {
			s = claimKind(v)
			if ok = s != ""; !ok {
				r.ask = true
			}
		}
	}
	return s, ok && r.valid(s)
}

// claim is the value at the path of f. Topdown sees claims as encoding/json
// made them; a map of another kind is not understood.
func (r *run) claim(f *field, t *policy.Token) (any, bool) {
	v := any(t.Claims)
	for _, name := range f.claim {
		m, ok := v.(map[string]any)
		if !ok {
			if claimKind(v) == "" {
				r.ask = true
			}
			return nil, false
		}
		if v, ok = m[name]; !ok {
			return nil, false
		}
	}
	return v, true
}

// claimItem is element i of a claim that is a list of texts.
func (r *run) claimItem(f *field, t *policy.Token, i int) (string, bool) {
	v, ok := r.claim(f, t)
	if !ok {
		return "", false
	}
	switch list := v.(type) {
	case []string:
		return element(list, int32(i))
	case []any:
		if i >= len(list) {
			return "", false
		}
		if s, ok := list[i].(string); ok {
			return s, true
		}
	}
	r.odd(f)
	return "", false
}

// odd notes a claim that is not what f expects.
func (r *run) odd(f *field) {
	if !f.lenient {
		r.ask = true
	}
}

// claimKind is the value of TokenClaimKind, empty for what JSON does not have.
func claimKind(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		if v {
			return "true"
		}
		return "false"
	case float64, json.Number, int, int64:
		return "number"
	case map[string]any:
		return "object"
	case []string:
		return "strings"
	case []any:
		for _, e := range v {
			if _, ok := e.(string); !ok {
				return "array"
			}
		}
		return "strings"
	}
	return ""
}

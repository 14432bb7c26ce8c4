package program

import (
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/glob"

	"github.com/writ-dev/writ/policy"
)

// The reference: a Program as its documentation reads, clause by clause, on
// the texts that topdown sees. Nothing in it is shared with the Evaluator.

type truth int8

const (
	no truth = iota
	yes
	unknown // something was read that the program does not answer for
)

func both(x, y truth) truth {
	switch {
	case x == no || y == no:
		return no
	case x == unknown || y == unknown:
		return unknown
	}
	return yes
}

func either(x, y truth) truth { return negate(both(negate(x), negate(y))) }

func negate(x truth) truth {
	switch x {
	case yes:
		return no
	case no:
		return yes
	}
	return unknown
}

func truly(b bool) truth {
	if b {
		return yes
	}
	return no
}

type naive struct {
	p     *Program
	in    *policy.Input
	token *policy.Token
}

func seen(s string) string { return string([]rune(s)) }

// decide gives the answer, or false for ask.
func (n naive) decide(out *policy.Decision) bool {
	out.Reset()
	if n.in.Layer != policy.LayerConnection && n.in.Layer != policy.LayerRequest || n.in.Time.IsZero() {
		return false
	}
	i := slices.IndexFunc(n.p.Units, func(u Unit) bool { return u.Service == n.in.Destination.Service })
	if i < 0 {
		return false
	}
	u := n.p.Units[i]
	for _, c := range u.Ask {
		if n.clause(c) != no {
			return false
		}
	}
	for _, tier := range []policy.Tier{policy.Guardrail, policy.BreakGlass, policy.OverridableGuardrail, policy.ServiceDeny, policy.ServiceAllow} {
		rules := map[string]policy.Rule{}
		expires := int64(0)
		for _, c := range u.Clauses[tier] {
			switch n.clause(c) {
			case unknown:
				return false
			case yes:
				if c.Ask {
					return false
				}
				rules[n.p.Rules[c.Rule].ID] = n.p.Rules[c.Rule]
				if c.Expires != 0 && (expires == 0 || c.Expires < expires) {
					expires = c.Expires
				}
			}
		}
		if len(rules) == 0 {
			continue
		}
		out.Tier, out.Verdict = tier, policy.Deny
		if tier == policy.BreakGlass || tier == policy.ServiceAllow {
			out.Verdict = policy.Allow
		}
		for _, r := range rules {
			out.Rules = append(out.Rules, r)
		}
		slices.SortFunc(out.Rules, func(x, y policy.Rule) int { return strings.Compare(x.ID, y.ID) })
		if expires != 0 {
			out.Expires = time.Unix(0, expires).UTC()
		}
		return true
	}
	out.Tier, out.Verdict, out.Reason = policy.DefaultDeny, policy.Deny, "no rule allows it"
	if !u.HasPolicy {
		out.Reason = fmt.Sprintf("no policy for service %q", u.Service)
	}
	return true
}

func (n naive) clause(c Clause) truth {
	all := yes
	for _, a := range c.Atoms {
		all = both(all, n.atom(a))
	}
	return all
}

func (n naive) atom(a Atom) truth {
	met := no
	switch {
	case len(a.Token) > 0:
		for i := range n.in.Tokens {
			n.token = &n.in.Tokens[i]
			met = either(met, n.clause(Clause{Atoms: a.Token}))
		}
	default:
		values, ok := n.values(a.Field)
		if !ok {
			return unknown
		}
		for _, v := range values {
			all := yes
			for _, p := range a.Preds {
				holds := n.pred(p, v)
				if p.Not {
					holds = negate(holds)
				}
				all = both(all, holds)
			}
			met = either(met, all)
		}
	}
	if a.Not {
		return negate(met)
	}
	return met
}

func (n naive) pred(p Pred, v any) truth {
	if p.Op == Range {
		return truly(p.Low <= v.(int64) && v.(int64) <= p.High)
	}
	if p.Op == PathMatch {
		for _, t := range p.Texts {
			if naivePath(t, v.([]string)) {
				return yes
			}
		}
		return no
	}
	s := v.(string)
	switch p.Op {
	case Address:
		return truly(net.ParseIP(s) != nil)
	case EqualField:
		values, ok := n.values(*p.Other)
		if !ok {
			return unknown
		}
		return truly(len(values) == 1 && values[0] == s)
	}
	for _, t := range p.Texts {
		holds := false
		switch p.Op {
		case Equal:
			holds = s == t
		case Prefix:
			holds = strings.HasPrefix(s, t)
		case Suffix:
			holds = strings.HasSuffix(s, t)
		case Contains:
			holds = strings.Contains(s, t)
		case Glob:
			delimiters, pattern, _ := strings.Cut(t, "\x00")
			holds = once("glob "+t, func() *glob.Pattern { return glob.MustCompile(pattern, []rune(delimiters)...) }).Match(s)
		case Regex:
			holds = once("regex "+t, func() *regexp.Regexp { return regexp.MustCompile(t) }).MatchString(s)
		case CIDR:
			_, cidr, err := net.ParseCIDR(t)
			if err != nil {
				panic(err)
			}
			ip := net.ParseIP(s)
			holds = ip != nil && cidr.Contains(ip)
		}
		if holds {
			return yes
		}
	}
	return no
}

// naivePath turns a pattern into a regular expression over the segments, each
// with a character behind it that none of them holds.
func naivePath(pattern string, segments []string) bool {
	var re strings.Builder
	re.WriteString("^(?s)")
	if pattern != "/" {
		parts := strings.Split(pattern, "/")[1:]
		for i, part := range parts {
			switch {
			case part == "{*}":
				re.WriteString("[^\U0010ffff]+\U0010ffff")
			case part == "{**}":
				re.WriteString("([^\U0010ffff]*\U0010ffff)*")
			case part == "*" && i == len(parts)-1:
				re.WriteString("([^\U0010ffff]*\U0010ffff)+")
			default:
				re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(part), `\*`, "[^\U0010ffff]*") + "\U0010ffff")
			}
		}
	}
	re.WriteString("$")
	path := ""
	for _, s := range segments {
		path += s + "\U0010ffff"
	}
	return once("regex "+re.String(), func() *regexp.Regexp { return regexp.MustCompile(re.String()) }).MatchString(path)
}

var made sync.Map

// once keeps what is made: compiling is what would take the time here.
func once[T any](key string, make func() T) T {
	v, ok := made.Load(key)
	if !ok {
		v, _ = made.LoadOrStore(key, make())
	}
	return v.(T)
}

// values of a field after its steps: strings, int64s, or one []string.
func (n naive) values(f Field) (values []any, ok bool) {
	raw, ok := n.raw(f)
	if !ok {
		return nil, false
	}
	for _, step := range f.Via {
		var next []any
		for _, v := range raw {
			s := v.(string)
			switch step.Kind {
			case Lower:
				next = append(next, strings.ToLower(s))
			case Upper:
				next = append(next, strings.ToUpper(s))
			case TrimPrefix:
				next = append(next, strings.TrimPrefix(s, step.Text))
			case TrimSuffix:
				next = append(next, strings.TrimSuffix(s, step.Text))
			case TrimSpace:
				next = append(next, strings.TrimSpace(s))
			case Trim:
				next = append(next, strings.Trim(s, step.Text))
			case TrimLeft:
				next = append(next, strings.TrimLeft(s, step.Text))
			case TrimRight:
				next = append(next, strings.TrimRight(s, step.Text))
			case SplitElement:
				next = append(next, pick(strings.Split(s, step.Text), step.Index)...)
			}
		}
		raw = next
	}
	return raw, true
}

func pick(list []string, index int32) []any {
	var out []any
	for i, s := range list {
		if index == Any || int(index) == i {
			out = append(out, seen(s))
		}
	}
	return out
}

func (n naive) raw(f Field) ([]any, bool) {
	in, q, c := n.in, &n.in.Request, &n.in.Connection
	one := func(s string) ([]any, bool) { return []any{seen(s)}, true }
	switch f.Base {
	case Direction:
		return one(in.Direction)
	case Layer:
		return one(in.Layer)
	case SourceID:
		return one(in.Source.ID)
	case SourceTrustDomain:
		return one(in.Source.TrustDomain)
	case SourcePath:
		return one(in.Source.Path)
	case SourceAuthn:
		return one(in.Source.Authn)
	case DestinationService:
		return one(in.Destination.Service)
	case DestinationID:
		return one(in.Destination.ID)
	case DestinationPort:
		return []any{int64(in.Destination.Port)}, true
	case PeerIP:
		return one(c.PeerIP)
	case ClientIP:
		return one(c.ClientIP)
	case TLSVersion:
		return one(c.TLSVersion)
	case SNI:
		return one(c.SNI)
	case ALPN:
		return one(c.ALPN)
	case TokenStatus:
		if in.TokenStatus == "" {
			return one("absent")
		}
		return one(in.TokenStatus)
	case Time:
		return []any{in.Time.UnixNano()}, true
	case Weekday:
		return one(in.Time.In(time.FixedZone("", int(f.Index-OffsetUTC)*60)).Format("Monday"))
	case SecondOfDay:
		at := in.Time.In(time.FixedZone("", int(f.Index-OffsetUTC)*60))
		return []any{int64(at.Hour()*3600 + at.Minute()*60 + at.Second())}, true
	case TokenIssuer:
		return one(n.token.Issuer)
	case TokenSubject:
		return one(n.token.Subject)
	case TokenActor:
		return one(n.token.Actor)
	case TokenAudience:
		return pick(n.token.Audience, f.Index), true
	case TokenClaim, TokenClaimItem, TokenClaimKind:
		return n.claim(f)
	}
	if in.Layer != policy.LayerRequest {
		return nil, true
	}
	switch f.Base {
	case Protocol:
		return one(q.Protocol)
	case Method:
		return one(q.Method)
	case Host:
		return one(q.Host)
	case Path:
		return one(q.Path)
	case Segment:
		return pick(q.Segments, f.Index), true
	case SegmentCount:
		return []any{int64(len(q.Segments))}, true
	case Segments:
		list := []string{}
		for _, s := range q.Segments {
			list = append(list, seen(s))
		}
		return []any{list}, true
	case GRPCService, GRPCMethod:
		if q.Protocol != policy.GRPC {
			return nil, true
		}
		if f.Base == GRPCService {
			return one(q.GRPCService)
		}
		return one(q.GRPCMethod)
	case ContentLength:
		return []any{q.ContentLength}, true
	}
	values := q.Headers
	if f.Base == Query || f.Base == QueryCount {
		values = q.Query
	}
	if values == nil {
		return nil, true
	}
	list := values.Get(f.Name)
	if f.Base == HeaderCount || f.Base == QueryCount {
		if list == nil {
			return nil, true
		}
		return []any{int64(len(list))}, true
	}
	return pick(list, f.Index), true
}

// claim reads from the claims as JSON, as a record would hold them.
func (n naive) claim(f Field) ([]any, bool) {
	data, err := json.Marshal(n.token.Claims)
	if err != nil {
		panic(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		panic(err)
	}
	for name := range strings.SplitSeq(f.Name, "\x00") {
		object, _ := v.(map[string]any)
		inner, there := object[name]
		if !there {
			return nil, true
		}
		v = inner
	}
	list, isList := v.([]any)
	texts := isList && !slices.ContainsFunc(list, func(e any) bool { _, text := e.(string); return !text })
	switch f.Base {
	case TokenClaim:
		s, ok := v.(string)
		return []any{s}, ok
	case TokenClaimItem:
		if !isList {
			return nil, false
		}
		var out []any
		for i, e := range list {
			if f.Index == Any || int(f.Index) == i {
				if _, text := e.(string); !text {
					return nil, false
				}
				out = append(out, e)
			}
		}
		return out, true
	}
	switch {
	case v == nil:
		return []any{"null"}, true
	case v == true:
		return []any{"true"}, true
	case v == false:
		return []any{"false"}, true
	case texts:
		return []any{"strings"}, true
	case isList:
		return []any{"array"}, true
	}
	switch v.(type) {
	case string:
		return []any{"string"}, true
	case float64:
		return []any{"number"}, true
	}
	return []any{"object"}, true
}

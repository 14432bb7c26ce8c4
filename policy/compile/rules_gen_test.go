package compile

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/policy"
)

// ruleWriter writes random rules files and inputs from few words, so that they
// meet.
type ruleWriter struct{ r *rand.Rand }

func one[T any](w ruleWriter, list []T) T { return list[w.r.IntN(len(list))] }

// some is a few of the list, as a YAML list of texts.
func (w ruleWriter) some(list ...string) string {
	picked := slices.Clone(list)
	w.r.Shuffle(len(picked), func(i, j int) { picked[i], picked[j] = picked[j], picked[i] })
	picked = picked[:1+w.r.IntN(min(len(picked), 3))]
	for i, s := range picked {
		b, _ := json.Marshal(s)
		picked[i] = string(b)
	}
	return "[" + strings.Join(picked, ", ") + "]"
}

// not makes some keys negative.
func (w ruleWriter) not(key string) string {
	if w.r.IntN(3) == 0 {
		return "not_" + key
	}
	return key
}

// entry is a mapping of one to three of the keys.
func (w ruleWriter) entry(keys map[string]func() string) string {
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	slices.Sort(names)
	w.r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var parts []string
	for _, name := range names[:1+w.r.IntN(3)] {
		parts = append(parts, w.not(name)+": "+keys[name]())
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func (w ruleWriter) source() string {
	texts := func(list ...string) func() string { return func() string { return w.some(list...) } }
	return w.entry(map[string]func() string{
		"spiffe_ids": func() string {
			if w.r.IntN(2) == 0 {
				return w.some("spiffe://example.org/svc/web", "spiffe://example.org/ns/shop/sa/web", "spiffe://other.org/svc/web")
			}
			return w.some("spiffe://example.org/**", "spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/shop/**", "spiffe://example.org/*/w*", "spiffe://other.org/svc/web")
		},
		"trust_domains":    texts("example.org", "other.org"),
		"namespaces":       texts("shop", "ops"),
		"service_accounts": texts("shop/web", "shop/cron"),
		"names":            texts("web", "batch"),
		"cidrs":            texts("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "0.0.0.0/0", "::/0"),
		"client_cidrs":     texts("10.0.0.0/8", "192.0.2.0/24"),
		"token_issuers":    texts("https://id", "https://other"),
		"token_subjects":   texts("ann", "bob"),
		"claims":           func() string { return "{role: " + w.some("admin", "user") + ", team: " + w.some("a", "b") + "}" },
	})
}

func (w ruleWriter) operation() string {
	texts := func(list ...string) func() string { return func() string { return w.some(list...) } }
	return w.entry(map[string]func() string{
		"methods":       texts("GET", "HEAD", "POST"),
		"paths":         texts("/", "/orders", "/orders/", "/orders/{*}", "/orders/*", "/{**}/items", "/o*", "/{*}/{**}/items/*", "/*", "/orders/{**}"),
		"hosts":         texts("orders", "Orders.example.org", "*.example.org"),
		"headers":       func() string { return "{x-env: " + w.some("prod", "p*", "*t", "*", "*e*", "") + "}" },
		"query":         func() string { return "{q: " + w.some("1", "p*") + "}" },
		"grpc_services": texts("shop.Orders", "shop.*"),
		"grpc_methods":  texts("Get", "*Set", "G*t"),
		"ports":         texts("8443", "80-90", "9000", "8444"),
	})
}

func (w ruleWriter) condition() string {
	switch w.r.IntN(8) {
	case 0:
		return "{time: {after: 2030-01-01T12:00:00Z, before: 2030-01-06}}"
	case 1:
		return "{time: {before: 2030-01-05}}"
	case 2:
		return fmt.Sprintf(`{window: {days: %s, from: "08:00", to: "13:00", zone: "%s"}}`, w.some("mon", "tue", "sat"), one(w, []string{"UTC", "+01:00", "-11:30"}))
	case 3:
		return fmt.Sprintf("{field: request.content_length, %s}", one(w, []string{"min: 1", "max: 7", "min: 2, max: 1024", "in: [-1, 7]", "not_in: [0]"}))
	case 4:
		return fmt.Sprintf("{field: %s, %s: %s}", one(w, []string{"request.headers.x-env", "request.query.q"}), w.not(one(w, []string{"in", "prefix", "suffix", "glob"})), w.some("prod", "test", "p*d", "t"))
	case 5:
		return fmt.Sprintf("{field: request.headers.x-ticket, exists: %v}", w.r.IntN(2) == 0)
	case 6:
		return fmt.Sprintf("{field: %s, %s: %s}", one(w, []string{"connection.peer_ip", "connection.client_ip"}), w.not("cidr"), w.some("10.0.0.0/8", "2001:db8::/32"))
	}
	return fmt.Sprintf("{field: %s}", one(w, []string{
		"source.authn, in: [mtls]", "source.authn, not_in: [none]", "layer, in: [connection]", "token_status, in: [valid]", "direction, in: [inbound]",
		`source.path, prefix: ["/svc/"]`, `request.path, suffix: ["items", "/"]`, `request.host, in: ["orders:8443"]`, `connection.sni, glob: ["o*s"]`,
		`request.grpc.service, not_in: [shop.Orders]`, `request.protocol, in: [grpc]`, `destination.port, in: [80, 8443]`, `connection.client_ip, in: [""]`,
		`connection.tls_version, in: ["1.3"]`, `connection.alpn, not_in: [h2]`, `source.id, not_prefix: ["spiffe://example.org/"]`, `source.trust_domain, in: [""]`,
		`destination.id, suffix: ["orders"]`, `request.method, not_in: [get]`,
	}))
}

func (w ruleWriter) rule(id int, action string) string {
	list := func(n int, make func() string) string {
		var items []string
		for range n {
			items = append(items, make())
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	text := fmt.Sprintf("  - {id: r%d", id)
	if action != "" {
		text += ", " + action
	}
	if w.r.IntN(4) == 0 {
		text += ", from: any"
	} else {
		text += ", from: " + list(1+w.r.IntN(3), w.source)
	}
	if w.r.IntN(3) > 0 {
		text += ", to: " + list(1+w.r.IntN(3), w.operation)
	}
	if w.r.IntN(3) == 0 {
		text += ", when: " + list(1+w.r.IntN(2), w.condition)
	}
	if w.r.IntN(4) == 0 {
		text += ", expires: " + one(w, []string{"2030-01-05T23:59:59.999999999Z", "2030-01-01T12:30:00Z", "2040-01-01"})
	}
	return text + "}\n"
}

// services is a file for a service, guardrails one for all.
func (w ruleWriter) services() string {
	text := "service: orders\nrules:\n"
	for i := range 1 + w.r.IntN(6) {
		text += w.rule(i, "action: "+one(w, []string{"allow", "allow", "deny"}))
	}
	return text
}

func (w ruleWriter) guardrails() string {
	text := "guardrails:\n"
	for i := range 1 + w.r.IntN(2) {
		text += w.rule(i, fmt.Sprintf("overridable: %v", w.r.IntN(2) == 0))
	}
	return text
}

var generatedAddresses = []string{"10.1.2.3", "10.200.0.1", "192.0.2.7", "2001:db8::1", "", "nonsense", "::ffff:10.1.2.3", "10.1.2.3%eth0", "10.0.0.0/8"}

func (w ruleWriter) input() *policy.Input {
	in := &policy.Input{
		Direction:   one(w, []string{policy.Inbound, policy.Inbound, policy.Outbound}),
		Layer:       policy.LayerRequest,
		Source:      policy.Source{Authn: one(w, []string{policy.AuthnMTLS, policy.AuthnMTLS, policy.AuthnNone, policy.AuthnToken})},
		Destination: policy.Destination{Service: "orders", ID: "spiffe://example.org/svc/orders", Port: one(w, []int{0, 80, 85, 8443, 8445, 9000})},
		TokenStatus: one(w, []string{policy.TokenAbsent, policy.TokenValid, policy.TokenInvalid, ""}),
		Connection: policy.Connection{PeerIP: one(w, generatedAddresses), ClientIP: one(w, generatedAddresses),
			TLSVersion: one(w, []string{"1.3", "1.2"}), SNI: one(w, []string{"orders", "os", "", "o\xff"}), ALPN: one(w, []string{"h2", "http/1.1", ""})},
		Time: one(w, []time.Time{time.Date(2030, 1, 1, 12, 30, 0, 0, time.UTC), time.Date(2030, 1, 5, 23, 59, 59, 999999999, time.UTC),
			time.Date(2030, 1, 5, 8, 0, 0, 0, time.UTC), time.Date(2030, 1, 5, 23, 59, 59, 999999998, time.UTC), time.Date(1969, 1, 7, 11, 0, 0, 1, time.UTC),
			// The edges of a window.
			time.Date(2030, 1, 1, 12, 59, 59, 999999999, time.UTC), time.Date(2030, 1, 1, 13, 0, 0, 0, time.UTC), time.Date(2030, 1, 1, 7, 59, 59, 999999999, time.UTC),
			time.Date(2030, 1, 5, 0, 30, 0, 0, time.UTC), time.Date(2030, 1, 7, 7, 0, 0, 0, time.UTC)}),
	}
	if w.r.IntN(20) == 0 {
		in.Destination.Service = one(w, []string{"payments", "nobody"})
	}
	id := one(w, []string{"example.org/svc/web", "example.org/ns/shop/sa/web", "example.org/ns/ops/sa/web", "example.org/ns/shop/sa/cron", "other.org/svc/web", "example.org/svc/batch", "other.org/ns/shop/sa/web", ""})
	if td, path, ok := strings.Cut(id, "/"); ok {
		in.Source.ID, in.Source.TrustDomain, in.Source.Path = "spiffe://"+id, td, "/"+path
	}
	for range w.r.IntN(3) {
		in.Tokens = append(in.Tokens, w.token())
	}
	if w.r.IntN(8) > 0 {
		in.Request = w.request()
	} else {
		in.Layer = policy.LayerConnection
	}
	return in
}

func (w ruleWriter) token() policy.Token {
	t := policy.Token{Issuer: one(w, []string{"https://id", "https://other"}), Subject: one(w, []string{"ann", "bob"}), Claims: map[string]any{}}
	values := []any{"admin", "user", "a", "", json.Number("7"), true, nil, []any{"admin", "x"}, []any{"b"}, []any{}, []any{"admin", json.Number("1")}, map[string]any{"admin": true}}
	for _, name := range []string{"role", "team"} {
		if w.r.IntN(4) > 0 {
			t.Claims[name] = one(w, values)
		}
	}
	if w.r.IntN(10) == 0 {
		t.Claims = nil
	}
	return t
}

func (w ruleWriter) request() policy.Request {
	path := one(w, []string{"/", "/orders", "/orders/", "/orders/1", "/orders/1/items", "/orders/1/items/7", "/items", "/a%2Fb/items", "/%C3%A9", "/orders/1/items/"})
	segments, _ := policy.SplitPath(nil, path, false)
	q := policy.Request{
		Protocol: policy.HTTP, Method: one(w, []string{"GET", "HEAD", "POST", "get"}), Path: path, Segments: segments,
		Host: one(w, []string{"orders", "orders:8443", "ORDERS.example.org", "a.example.org:1", "example.org", ""}), ContentLength: one(w, []int64{-1, 0, 1, 7, 1024, 1 << 40}),
		Headers: policy.MapValues{}, Query: policy.MapValues{},
	}
	for name, in := range map[string]policy.Values{"x-env": q.Headers, "x-ticket": q.Headers, "q": q.Query} {
		if w.r.IntN(3) == 0 {
			continue
		}
		values := []string{}
		for range w.r.IntN(3) {
			values = append(values, one(w, []string{"prod", "test", "", "1", "pt", "p\xff", "p\nd"}))
		}
		in.(policy.MapValues)[name] = values
	}
	if w.r.IntN(3) == 0 {
		q.Protocol, q.GRPCService, q.GRPCMethod = policy.GRPC, one(w, []string{"shop.Orders", "shop.Other"}), one(w, []string{"Get", "Set", "ReSet", "Git"})
	}
	return q
}

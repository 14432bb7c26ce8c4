package equality

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/writ-dev/writ/policy"
)

// The words that policies and inputs are made of are few, so that they meet.
var (
	ids = []string{
		"spiffe://example.org/svc/web", "spiffe://example.org/svc/orders", "spiffe://example.org/svc/support",
		"spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/cron", "spiffe://partner.example/svc/web", "",
		"spiffe://example.org/svc/wéb", "SPIFFE://EXAMPLE.ORG/svc/web",
	}
	trustDomains = []string{"example.org", "partner.example", ""}
	methods      = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "get", ""}
	hosts        = []string{"orders", "ab-", "ab", "orders.example.org", "orders:8443", "ORDERS", ""}
	paths        = []string{
		"/", "/orders", "/orders/", "/orders/1001", "/orders/1001/items", "/Orders/1001", "/internal/metrics", "/products/%C3%A9t%C3%A9",
		"/a%2Fb", `/a\/secret`, `/a/\/c`, "/a/*", "/orders/orders", "/orders/orders/", "/%25b", "/products/42/stock", "/files/report.png", "/orders/1001/items/7/notes", "/o",
	}
	headerNames = []string{"x-env", "x-role", "x-ticket"}
	queryNames  = []string{"q", "tenant"}
	words       = []string{
		"prod", "test", "admin", "user", "T-1", "T-", "7", "-1", "3.0", "1e3", "", "é", "e\u0301", "\u00a0x ", " admin ", "ADMIN", "a,b", "a.b.c", "\xff\xfe", "adm\xffin",
		"10.1.2.3", "web", "orders", "2030-01-01T00:00:00Z", "null", "true",
	}
	addresses = []string{"10.1.2.3", "10.200.0.1", "192.0.2.7", "2001:db8::1", "", "not an address", "::ffff:10.1.2.3", "10.1.2.3%eth0"}
	lengths   = []int64{-1, 0, 1, 7, 1024, 1 << 20, 1 << 53, 1<<53 + 1, math.MaxInt64, math.MaxInt64 - 1}
	ports     = []int{0, 80, 8443, 65535}
	services  = []string{"orders", "payments", "nobody"}
	instants  = []time.Time{
		time.Date(2030, 1, 1, 12, 30, 0, 0, time.UTC), time.Date(2030, 1, 5, 23, 59, 59, 999999999, time.UTC),
		time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC), time.Date(1999, 12, 31, 0, 0, 0, 1, time.UTC), time.Date(2030, 1, 1, 13, 0, 0, 0, time.FixedZone("", 3600)),
	}
	claims = []any{
		"admin", "user", "7", "", true, false, nil, json.Number("7"), json.Number("7.0"), json.Number("9007199254740993"), json.Number("-0"),
		json.Number("1e2"), []any{"admin", "user"}, []any{}, []any{json.Number("1"), "admin"}, map[string]any{"role": "admin"}, "\xff",
	}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// newInput is a random input: most of it is what a request looks like, and some
// is what no enforcement point should send.
func newInput(r *rand.Rand) *policy.Input {
	in := &policy.Input{
		Direction:   pick(r, []string{policy.Inbound, policy.Inbound, policy.Outbound}),
		Layer:       policy.LayerRequest,
		Source:      policy.Source{ID: pick(r, ids), Authn: pick(r, []string{policy.AuthnMTLS, policy.AuthnMTLS, policy.AuthnNone, policy.AuthnToken})},
		Destination: policy.Destination{Service: services[min(r.IntN(8), 10)%len(services)], ID: "spiffe://example.org/svc/orders", Port: pick(r, ports)},
		TokenStatus: pick(r, []string{policy.TokenAbsent, policy.TokenValid, policy.TokenInvalid, ""}),
		Connection: policy.Connection{
			PeerIP: pick(r, addresses), ClientIP: pick(r, addresses), TLSVersion: pick(r, []string{"1.3", "1.2", ""}),
			SNI: pick(r, hosts), ALPN: pick(r, []string{"h2", "http/1.1", ""}),
		},
		Time: pick(r, instants),
	}
	if r.IntN(4) > 0 { // Most requests go to the service that most rules are of.
		in.Destination.Service = "orders"
	}
	if rest, ok := strings.CutPrefix(in.Source.ID, "spiffe://"); ok {
		td, path, _ := strings.Cut(rest, "/")
		in.Source.TrustDomain, in.Source.Path = td, "/"+path
	}
	if r.IntN(20) == 0 {
		in.Source.TrustDomain = pick(r, trustDomains)
	}
	for range r.IntN(3) {
		in.Tokens = append(in.Tokens, newToken(r))
	}
	if r.IntN(10) == 0 {
		in.Layer = policy.LayerConnection
		return in
	}
	in.Request = newRequest(r)
	return in
}

func newRequest(r *rand.Rand) policy.Request {
	q := policy.Request{
		Protocol: policy.HTTP, Method: pick(r, methods), Host: pick(r, hosts), Path: pick(r, paths),
		ContentLength: pick(r, lengths),
	}
	q.Segments, _ = policy.SplitPath(nil, q.Path, true)
	if r.IntN(20) == 0 {
		q.Segments = []string{pick(r, words), pick(r, words)}
	}
	if r.IntN(4) == 0 {
		q.Protocol, q.Method = policy.GRPC, "POST"
		q.GRPCService = pick(r, []string{"shop.payments.v1.Payments", "shop.orders.v1.Orders", ""})
		q.GRPCMethod = pick(r, []string{"Charge", "Refund", ""})
	}
	if r.IntN(10) > 0 {
		q.Headers = newValues(r, headerNames)
		q.Query = newValues(r, queryNames)
	}
	return q
}

func newValues(r *rand.Rand, names []string) policy.Values {
	m := policy.MapValues{}
	for _, name := range names {
		for range r.IntN(3) {
			m[name] = append(m[name], pick(r, words))
		}
		if r.IntN(10) == 0 {
			m[name] = []string{}
		}
	}
	return m
}

func newToken(r *rand.Rand) policy.Token {
	t := policy.Token{
		Issuer: pick(r, []string{"https://issuer.example", "https://other.example", ""}), Subject: pick(r, words), Actor: pick(r, words),
		Claims: map[string]any{},
	}
	for range r.IntN(3) {
		t.Audience = append(t.Audience, pick(r, words))
	}
	for _, name := range []string{"role", "level", "groups"} {
		if r.IntN(3) > 0 {
			t.Claims[name] = pick(r, claims)
		}
	}
	for _, name := range []string{"a", "", "a\x00b"} {
		if r.IntN(8) == 0 {
			t.Claims[name] = pick(r, []any{"admin", false, map[string]any{"b": "admin", "": true}})
		}
	}
	if r.IntN(10) == 0 {
		t.Claims = nil
	}
	return t
}

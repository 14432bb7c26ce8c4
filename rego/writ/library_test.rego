# The library that publishers import. Its examples, in the comments, are asked
# about the request below and hold.
package writ_test

import data.writ.grpc
import data.writ.http
import data.writ.net as writ_net
import data.writ.spiffe
import data.writ.time as writ_time
import data.writ.token

example_input := {
	"version": 1,
	"direction": "inbound",
	"layer": "request",
	"source": {"id": "spiffe://example.org/ns/shop/sa/web", "trust_domain": "example.org", "path": "/ns/shop/sa/web", "authn": "mtls"},
	"destination": {"service": "orders", "id": "spiffe://example.org/svc/orders", "port": 8443},
	"request": {
		"protocol": "grpc", "method": "GET", "host": "orders", "path": "/orders/7", "segments": ["orders", "7"],
		"query": {"dry_run": ["true"], "fields": ["id", "total"]},
		"headers": {"x-tenant": ["acme"], "accept": ["text/html", "*/*"], "content-type": ["application/json; charset=utf-8"]},
		"grpc": {"service": "shop.Orders", "method": "Get"},
		"content_length": -1,
	},
	"tokens": [{
		"issuer": "https://idp.example.org", "subject": "ann", "audience": ["orders"], "actor": "",
		"claims": {"tenant": "acme", "roles": ["clerk", "buyer"], "scope": "orders:read orders:write"},
	}],
	"token_status": "valid",
	"connection": {"peer_ip": "10.1.2.3", "client_ip": "10.1.2.3", "tls_version": "TLS 1.3", "sni": "", "alpn": "h2"},
	# A Tuesday; it is 13:30 in Vienna.
	"time": "2030-01-01T12:30:00Z",
}

with_change(change) := object.union(example_input, change)

test_spiffe_trust_domain if {
	spiffe.trust_domain("spiffe://example.org/svc/web") == "example.org"
	spiffe.trust_domain("spiffe://example.org") == "example.org"
	every text in ["", "web", "https://example.org/svc/web"] {
		not spiffe.trust_domain(text)
		not spiffe.segments(text)
	}
}

test_spiffe_segments if {
	spiffe.segments("spiffe://example.org/svc/web") == ["svc", "web"]
	spiffe.segments("spiffe://example.org") == []
}

test_spiffe_under if {
	every id in ["spiffe://example.org/ns/shop", "spiffe://example.org/ns/shop/sa/web"] {
		spiffe.under(id, "spiffe://example.org/ns/shop")
		spiffe.under(id, "spiffe://example.org/ns/shop/")
		spiffe.under(id, "spiffe://example.org")
	}
	every id in ["spiffe://example.org/ns/shop2", "spiffe://example.org/ns", "spiffe://example.orgs/ns/shop", ""] {
		not spiffe.under(id, "spiffe://example.org/ns/shop")
	}
	every prefix in ["", "spiffe:", "spiffe://", "spiffe:///", "/ns/shop"] {
		not spiffe.under("spiffe://example.org/ns/shop", prefix)
	}
}

test_spiffe_matches if {
	every pattern in [
		"spiffe://example.org/ns/shop/sa/web",
		"spiffe://example.org/ns/*/sa/web",
		"spiffe://*/ns/shop/sa/web",
		"spiffe://example.org/ns/shop/sa/w*",
		"spiffe://example.org/**",
		"spiffe://example.org/**/sa/*",
		"spiffe://example.org/**/ns/shop/sa/web/**",
	] {
		spiffe.matches("spiffe://example.org/ns/shop/sa/web", pattern)
	}
	every pattern in [
		"", "*", "**", "spiffe://", "spiffe://example.org", "spiffe://example.org/",
		"spiffe://example.org/*", "spiffe://example.org/ns/*/web", "spiffe://exampleXorg/**",
		"spiffe://example.org/ns/shop/sa/web*", "spiffe://example.org/ns/shop/sa/web/*",
		"spiffe://example.org/ns/shop/sa/***", "spiffe://example.org/n**", "spiffe://example.org/ns/shop/sa/(web)",
		"spiffe://example.org/ns/shop/sa/{web,x}", "spiffe://example.org/ns/shop/sa/[w]eb",
	] {
		not spiffe.matches("spiffe://example.org/ns/shop/sa/web", pattern)
	}
	not spiffe.matches("", "spiffe://**")
	not spiffe.matches("spiffe://example.org/ns/shop/sa/web\nx", "spiffe://example.org/ns/shop/sa/web")
}

test_spiffe_shorthands_are_ours if {
	spiffe.namespace("spiffe://example.org/ns/shop/sa/web") == "shop" with input as example_input
	spiffe.service_account("spiffe://example.org/ns/shop/sa/web") == "web" with input as example_input
	spiffe.service("spiffe://example.org/svc/web") == "web" with input as example_input
	every id in ["spiffe://other.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/web/x", "spiffe://example.org/ns/shop", ""] {
		not spiffe.namespace(id) with input as example_input
		not spiffe.service_account(id) with input as example_input
		not spiffe.service(id) with input as example_input
	}
	not spiffe.service("spiffe://other.org/svc/web") with input as example_input
	not spiffe.ours("spiffe://other.org/svc/web") with input as example_input
	not spiffe.ours("") with input as with_change({"destination": {"id": ""}})
	not spiffe.ours("spiffe://example.org/svc/web") with input as with_change({"destination": {"id": ""}})
}

test_http_methods if {
	every method in ["GET", "HEAD", "OPTIONS"] {
		http.reads with input.request.method as method
		not http.writes with input.request.method as method
	}
	every method in ["POST", "PUT", "PATCH", "DELETE"] {
		http.writes with input.request.method as method
		not http.reads with input.request.method as method
	}
	every method in ["TRACE", "get", "post", ""] {
		not http.reads with input.request.method as method
		not http.writes with input.request.method as method
	}
}

# Each pattern with paths that match and paths that do not, as segments.
path_cases := {
	"/": {true: [[]], false: [[""], ["a"]]},
	"/a": {true: [["a"]], false: [[], ["A"], ["a", ""], ["a", "b"], ["ab"]]},
	"/a/": {true: [["a", ""]], false: [["a"], ["a", "b"], ["a", "", ""]]},
	"/a//b": {true: [["a", "", "b"]], false: [["a", "b"], ["a", "x", "b"]]},
	"/a/*": {true: [["a", "b"], ["a", "b", "c"], ["a", ""], ["a", "b", ""]], false: [["a"], [], ["b", "a"]]},
	"/*": {true: [["a"], ["a", "b"]], false: [[]]},
	"/*/b": {true: [["a", "b"], ["", "b"], ["x/y", "b"]], false: [["b"], ["a", "c", "b"]]},
	"/a*c/b": {true: [["ac", "b"], ["abc", "b"], ["a/c", "b"], ["a\nc", "b"]], false: [["ab", "b"], ["a", "c", "b"]]},
	"/a/b*": {true: [["a", "b"], ["a", "bc"]], false: [["a", "bc", "d"], ["a", "ab"]]},
	"/{*}": {true: [["a"], ["a/b"], ["*"]], false: [[], [""], ["a", "b"]]},
	"/{*}/x": {true: [["a", "x"]], false: [["", "x"], ["x"]]},
	"/{**}": {true: [[], ["a"], ["", ""], ["a", "b"]], false: []},
	"/a/{**}": {true: [["a"], ["a", "b"], ["a", ""]], false: [[], ["b"], ["ab"]]},
	"/{**}/z": {true: [["z"], ["a", "z"], ["z", "z"]], false: [[], ["z", "a"], ["a/z"]]},
	"/a/{**}/z": {true: [["a", "z"], ["a", "b", "c", "z"]], false: [["a"], ["z"], ["a", "b"]]},
	"/{**}/a/*": {true: [["a", "b"], ["x", "a", "b", "c"], ["a", "a"]], false: [["a"], ["x", "a"], ["b", "c"]]},
	"/a.b": {true: [["a.b"]], false: [["aXb"]]},
	"/a+b c%2A": {true: [["a+b c%2A"]], false: [["a b c*"], ["aab c"], ["a+b c%2Ax"]]},
	"/(a|b)[c]^$?": {true: [["(a|b)[c]^$?"]], false: [["a"], ["ac"]]},
	"/ä/*ö": {true: [["ä", "xö"]], false: [["a", "xo"]]},
}

test_http_path_match if {
	every pattern, outcomes in path_cases {
		every segments in outcomes[true] {
			http.path_match(pattern, segments)
			http.path(pattern) with input.request.segments as segments
		}
		every segments in outcomes[false] {
			not http.path_match(pattern, segments)
		}
	}
}

test_http_path_match_refuses_patterns if {
	every pattern in [
		"", "a", "a/b", "{**}", "*", "/{", "/}", "/{}", "/{a}", "/{***}", "/a{*}", "/{*}a", "/{**}a",
		"/{**}/{**}", "/{**}/a/{**}", "/{*", 7, null, ["/a"],
	] {
		not http.path_match(pattern, ["a"])
		not http.path_match(pattern, [])
	}
}

test_http_headers if {
	http.header("x-tenant") == "acme" with input as example_input
	http.header("X-Tenant") == "acme" with input as example_input
	not http.header("accept") with input as example_input
	not http.header("x-none") with input as example_input
	http.header_has("accept", "*/*") with input as example_input
	http.header_has("Accept", "text/html") with input as example_input
	not http.header_has("accept", "text") with input as example_input
	http.header_matches("accept", "text/.*") with input as example_input
	not http.header_matches("accept", "ext") with input as example_input
	not http.header_matches("accept", "text|x") with input as example_input
	not http.header_has("x-none", "") with input as example_input
}

test_http_query if {
	http.query("dry_run") == "true" with input as example_input
	not http.query("fields") with input as example_input
	not http.query("DRY_RUN") with input as example_input
	http.query_has("fields", "id") with input as example_input
	not http.query_has("fields", "name") with input as example_input
}

test_nothing_of_a_request_on_a_connection if {
	connection := object.remove(with_change({"layer": "connection"}), ["request"])
	not http.reads with input as connection
	not http.writes with input as connection
	not http.path("/{**}") with input as connection
	not http.header("x-tenant") with input as connection
	not http.query("dry_run") with input as connection
	not grpc.call("/shop.Orders/Get") with input as connection
}

test_grpc_call if {
	every name in ["/shop.Orders/Get", "/shop.Orders/*"] {
		grpc.call(name) with input as example_input
	}
	every name in ["shop.Orders/Get", "/shop.Orders", "/shop.Orders/", "/shop.Orders/G*", "/shop.*/Get", "/*/Get", "/*/*", "/shop.Orders/Get/x", ""] {
		not grpc.call(name) with input as example_input
	}
}

test_token_by if {
	some user in token.verified with input as example_input
	token.by(user, "https://idp.example.org", "orders") with input as example_input
	not token.by(user, "https://idp.example.org", "files") with input as example_input
	not token.by(user, "https://idp.example.org/", "orders") with input as example_input
}

test_token_claims if {
	some user in example_input.tokens
	token.claim_is(user, "tenant", "acme") with input as example_input
	not token.claim_is(user, "tenant", "initech") with input as example_input
	token.claim_in(user, "tenant", ["acme", "initech"]) with input as example_input
	not token.claim_in(user, "tenant", []) with input as example_input
	not token.claim_in(user, "roles", {"clerk"}) with input as example_input
	token.claim_has(user, "roles", "clerk") with input as example_input
	not token.claim_has(user, "roles", "cler") with input as example_input
	not token.claim_has(user, "tenant", "acme") with input as example_input
	not token.claim_has(user, "none", "x") with input as example_input
	not token.claim_has({"claims": {"roles": {"a": "clerk"}}}, "roles", "clerk") with input as example_input
	token.scope(user, "orders:read") with input as example_input
	not token.scope(user, "orders") with input as example_input
	not token.scope({"claims": {"scope": ["orders:read"]}}, "orders:read") with input as example_input
}

test_token_needs_valid if {
	some user in example_input.tokens
	every status in ["absent", "invalid"] {
		changed := with_change({"token_status": status})
		not token.verified with input as changed
		not token.by(user, "https://idp.example.org", "orders") with input as changed
		not token.claim_is(user, "tenant", "acme") with input as changed
		not token.claim_in(user, "tenant", ["acme"]) with input as changed
		not token.claim_has(user, "roles", "clerk") with input as changed
		not token.scope(user, "orders:read") with input as changed
	}
	not token.verified with input as with_change({"tokens": []})
}

test_net if {
	cidrs := {"10.0.0.0/8", "2001:db8::/32"}
	every address in ["10.1.2.3", "2001:db8::1", "::ffff:10.1.2.3"] {
		writ_net.in_cidr(address, cidrs)
		not writ_net.outside_cidr(address, cidrs)
	}
	every address in ["11.1.2.3", "2001:db9::1", "::1"] {
		not writ_net.in_cidr(address, cidrs)
		writ_net.outside_cidr(address, cidrs)
	}
	every address in ["", "localhost", "10.1.2.3:80", "10.0.0.0/8", "[::1]", "fe80::1%eth0", "10.1.2", "010.1.2.3"] {
		not writ_net.is_address(address)
		not writ_net.in_cidr(address, cidrs)
		not writ_net.outside_cidr(address, cidrs)
	}
	not writ_net.in_cidr("10.1.2.3", [])
	writ_net.outside_cidr("10.1.2.3", [])
}

test_time_between if {
	writ_time.between("2030-01-01T12:30:00Z", "2030-01-01T12:30:01Z") with input as example_input
	writ_time.between("2030-01-01T13:30:00+01:00", "2030-01-01T14:00:00+01:00") with input as example_input
	not writ_time.between("2030-01-01T12:00:00Z", "2030-01-01T12:30:00Z") with input as example_input
	not writ_time.between("2030-01-01T12:30:01Z", "2031-01-01T12:30:00Z") with input as example_input
}

test_time_weekday if {
	writ_time.weekday("UTC") == "Tuesday" with input as example_input
	writ_time.weekday("Pacific/Auckland") == "Wednesday" with input as example_input
}

test_time_hours if {
	every window in [["12:30", "12:31"], ["00:00", "23:59"], ["22:00", "12:31"], ["12:30", "00:00"], ["12:30", "04:00"]] {
		writ_time.hours(window[0], window[1], "UTC") with input as example_input
	}
	every window in [["12:00", "12:30"], ["12:31", "13:00"], ["12:30", "12:30"], ["22:00", "12:30"], ["12:31", "12:00"]] {
		not writ_time.hours(window[0], window[1], "UTC") with input as example_input
	}
	writ_time.hours("13:30", "13:31", "Europe/Vienna") with input as example_input
	writ_time.hours("14:30", "14:31", "Europe/Vienna") with input as example_input
		with input.time as "2030-07-01T12:30:00Z"
}

package orders_test

import data.services.orders

user := {
	"issuer": "https://idp.example.org",
	"subject": "ann",
	"audience": ["orders"],
	"claims": {"tenant": "acme", "roles": ["clerk"]},
}

request(tokens) := {
	"source": {"id": "spiffe://example.org/svc/web"},
	"destination": {"id": "spiffe://example.org/svc/orders"},
	"request": {"method": "GET", "segments": ["tenants", "acme", "orders", "7"]},
	"tokens": tokens,
	"token_status": "valid",
}

test_clerk if orders.allow == {"clerk-reads-own-tenant"} with input as request([user])

test_without_a_user if {
	count(orders.allow) == 0 with input as object.union(request([]), {"token_status": "absent"})
	count(orders.allow) == 0 with input as object.union(request([user]), {"token_status": "invalid"})
}

test_user_alone_is_not_enough if {
	count(orders.allow) == 0 with input as object.union(request([user]), {"source": {"id": "spiffe://example.org/svc/batch"}})
}

test_other_user if {
	every change in [
		{"issuer": "https://idp.example.com"},
		{"audience": ["payments"]},
		{"claims": {"tenant": "initech", "roles": ["clerk"]}},
		{"claims": {"tenant": "acme", "roles": ["buyer"]}},
		{"claims": {"tenant": "acme", "roles": "clerk"}},
	] {
		count(orders.allow) == 0 with input as request([object.union(user, change)])
	}
}

# Two tokens that would do only together.
test_claims_of_one_token if {
	clerk_elsewhere := object.union(user, {"claims": {"tenant": "initech", "roles": ["clerk"]}})
	buyer_here := object.union(user, {"claims": {"tenant": "acme", "roles": ["buyer"]}})
	count(orders.allow) == 0 with input as request([clerk_elsewhere, buyer_here])
}

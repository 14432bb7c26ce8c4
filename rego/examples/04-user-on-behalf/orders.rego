package services.orders

import data.writ.http
import data.writ.spiffe
import data.writ.token

# Three must agree: the workload that calls, the user whom it calls for, and
# the tenant in the path.
allow contains "clerk-reads-own-tenant" if {
	spiffe.service(input.source.id) == "web"
	http.reads
	http.path("/tenants/{*}/orders/{**}")
	some user in token.verified
	token.by(user, data.idp.issuer, "orders")
	token.claim_has(user, "roles", "clerk")
	token.claim_is(user, "tenant", input.request.segments[1])
}

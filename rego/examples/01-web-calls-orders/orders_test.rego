package orders_test

import data.services.orders

request(caller, method, segments) := {
	"source": {"id": concat("", ["spiffe://example.org/svc/", caller])},
	"destination": {"id": "spiffe://example.org/svc/orders"},
	"request": {"method": method, "segments": segments},
}

test_web_orders if orders.allow == {"web-orders"} with input as request("web", "POST", ["orders"])

test_web_and_support_read if {
	every caller in ["web", "support"] {
		orders.allow == {"order-is-read"} with input as request(caller, "GET", ["orders", "7"])
	}
}

test_support_does_not_order if count(orders.allow) == 0 with input as request("support", "POST", ["orders"])

test_nobody_lists_or_deletes if {
	count(orders.allow) == 0 with input as request("web", "GET", ["orders"])
	count(orders.allow) == 0 with input as request("web", "DELETE", ["orders", "7"])
}

test_web_of_another_trust_domain if {
	foreign := object.union(request("web", "POST", ["orders"]), {"source": {"id": "spiffe://example.com/svc/web"}})
	count(orders.allow) == 0 with input as foreign
}

package services.orders

import data.shop

allow contains "web-orders" if {
	shop.caller == "web"
	input.request.method == "POST"
	input.request.path == "/orders"
}

allow contains "order-is-read" if {
	shop.caller in {"web", "support"}
	shop.reading
	["orders", _] = input.request.segments
}

# A repeated request must not become a second order.
deny contains "order-needs-idempotency-key" if {
	input.request.method == "POST"
	not input.request.headers["idempotency-key"]
}

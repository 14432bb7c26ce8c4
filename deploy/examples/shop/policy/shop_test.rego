# Tests run before a revision is put in force; one that fails keeps it out.
package shop_test

import data.guardrails.internal_paths
import data.services.catalog
import data.services.orders
import data.services.payments
import data.services.reports

from(name, request) := {
	"layer": "request",
	"source": {"id": concat("", ["spiffe://shop.example/svc/", name])},
	"request": request,
}

http(method, path) := {
	"protocol": "http",
	"method": method,
	"path": path,
	"segments": split(trim_prefix(path, "/"), "/"),
	"headers": {},
}

call(method, headers) := {
	"protocol": "grpc",
	"method": "POST",
	"grpc": {"service": "shop.payments.v1.Payments", "method": method},
	"headers": headers,
}

test_web_and_orders_browse if {
	every name in ["web", "orders"] {
		catalog.allow == {"shop-browses-products"} with input as from(name, http("GET", "/products/42"))
	}
	count(catalog.allow) == 0 with input as from("support", http("GET", "/products/42"))
}

test_only_orders_takes_stock if {
	catalog.allow == {"orders-takes-stock"} with input as from("orders", http("PUT", "/products/42/stock"))
	count(catalog.allow) == 0 with input as from("web", http("PUT", "/products/42/stock"))
	count(catalog.allow) == 0 with input as from("orders", http("PUT", "/products/42/price"))
}

test_order_needs_idempotency_key if {
	with_key := object.union(http("POST", "/orders"), {"headers": {"idempotency-key": ["1"]}})
	orders.allow == {"web-orders"} with input as from("web", with_key)
	count(orders.deny) == 0 with input as from("web", with_key)
	orders.deny == {"order-needs-idempotency-key"} with input as from("web", http("POST", "/orders"))
}

test_orders_are_read_one_at_a_time if {
	orders.allow == {"order-is-read"} with input as from("support", http("GET", "/orders/1001"))
	count(orders.allow) == 0 with input as from("support", http("GET", "/orders"))
}

test_payments if {
	payments.allow == {"orders-charges"} with input as from("orders", call("Charge", {}))
	count(payments.allow) == 0 with input as from("orders", call("Refund", {}))
	count(payments.allow) == 0 with input as from("web", call("Charge", {}))
}

test_refund_needs_ticket if {
	payments.allow == {"support-refunds-with-ticket"} with input as from("support", call("Refund", {"x-ticket": ["T-1"]}))
	count(payments.allow) == 0 with input as from("support", call("Refund", {"x-ticket": ["please"]}))
	count(payments.allow) == 0 with input as from("support", call("Refund", {}))
}

test_reports if {
	reports.allow == {"support-reads-reports"} with input as from("support", http("GET", "/sales"))
	count(reports.allow) == 0 with input as from("web", http("GET", "/sales"))
}

# Another trust domain's web is not ours.
test_stranger if {
	stranger := {
		"layer": "request",
		"source": {"id": "spiffe://other.example/svc/web"},
		"request": http("GET", "/products"),
	}
	count(catalog.allow) == 0 with input as stranger
}

test_internal if {
	internal_paths.deny == {"internal-is-for-nobody"} with input as from("web", http("GET", "/internal/metrics"))
	count(internal_paths.deny) == 0 with input as from("web", http("GET", "/products"))
}

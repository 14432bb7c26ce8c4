package payments_test

import data.services.payments

call(caller, service, method) := {
	"source": {"id": concat("", ["spiffe://example.org/svc/", caller])},
	"destination": {"id": "spiffe://example.org/svc/payments"},
	"request": {"protocol": "grpc", "grpc": {"service": service, "method": method}},
}

test_orders if {
	every method in ["Charge", "Status"] {
		payments.allow == {"orders-charges"} with input as call("orders", "shop.Payments", method)
	}
	count(payments.allow) == 0 with input as call("orders", "shop.Payments", "Refund")
}

test_support if {
	payments.allow == {"support-refunds"} with input as call("support", "shop.Payments", "Refund")
	count(payments.allow) == 0 with input as call("support", "shop.Payments", "Charge")
}

test_other_services_of_the_server if {
	payments.allow == {"anyone-asks-for-health"} with input as call("web", "grpc.health.v1.Health", "Check")
	count(payments.allow) == 0 with input as call("web", "grpc.reflection.v1.ServerReflection", "ServerReflectionInfo")
	count(payments.allow) == 0 with input as call("orders", "shop.PaymentsAdmin", "Charge")
}

test_http_is_no_call if {
	request := {"source": {"id": "spiffe://example.org/svc/orders"}, "request": {"protocol": "http", "path": "/shop.Payments/Charge"}}
	count(payments.allow) == 0 with input as object.union(call("orders", "", ""), request)
}

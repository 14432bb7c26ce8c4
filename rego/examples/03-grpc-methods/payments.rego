package services.payments

import data.writ.grpc
import data.writ.spiffe

allow contains "orders-charges" if {
	spiffe.service(input.source.id) == "orders"
	some method in ["/shop.Payments/Charge", "/shop.Payments/Status"]
	grpc.call(method)
}

allow contains "support-refunds" if {
	spiffe.service(input.source.id) == "support"
	grpc.call("/shop.Payments/Refund")
}

allow contains "anyone-asks-for-health" if {
	spiffe.ours(input.source.id)
	grpc.call("/grpc.health.v1.Health/*")
}

package services.payments

import data.shop

allow contains "orders-charges" if {
	shop.caller == "orders"
	method == "Charge"
}

allow contains "support-refunds-with-ticket" if {
	shop.caller == "support"
	method == "Refund"
	some ticket in input.request.headers["x-ticket"]
	startswith(ticket, "T-")
}

method := input.request.grpc.method if input.request.grpc.service == "shop.payments.v1.Payments"

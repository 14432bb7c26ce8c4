package services.orders

import data.writ.http
import data.writ.spiffe

allow contains "web-orders" if {
	spiffe.service(input.source.id) == "web"
	input.request.method == "POST"
	http.path("/orders")
}

allow contains "order-is-read" if {
	spiffe.service(input.source.id) in {"web", "support"}
	http.reads
	http.path("/orders/{*}")
}

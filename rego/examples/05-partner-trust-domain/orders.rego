package services.orders

import data.writ.http
import data.writ.spiffe

allow contains "partner-reads-status" if {
	spiffe.matches(input.source.id, "spiffe://partner.example/ns/shipping/sa/*")
	http.reads
	http.path("/partner/v1/shipments/{*}")
}

allow contains "ours" if {
	spiffe.service(input.source.id) == "web"
	http.path("/orders/{**}")
}

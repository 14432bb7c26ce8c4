package partners_test

import data.guardrails.partners
import data.services.orders

from(id, segments) := {
	"layer": "request",
	"source": {"id": id, "authn": "mtls"},
	"destination": {"service": "orders", "id": "spiffe://example.org/svc/orders"},
	"request": {"method": "GET", "segments": segments},
}

shipping := "spiffe://partner.example/ns/shipping/sa/tracker"

test_partner_reads_shipment if {
	orders.allow == {"partner-reads-status"} with input as from(shipping, ["partner", "v1", "shipments", "7"])
	count(partners.deny) == 0 with input as from(shipping, ["partner", "v1", "shipments", "7"])
}

test_partner_elsewhere if {
	every segments in [["orders", "7"], ["partner", "v1", "shipments"], ["partner", "v1", "prices", "7"], []] {
		count(orders.allow) == 0 with input as from(shipping, segments)
	}
	partners.deny == {"foreign-beyond-partner-paths"} with input as from(shipping, ["orders", "7"])
}

test_other_workloads_of_the_partner if {
	count(orders.allow) == 0 with input as from("spiffe://partner.example/ns/billing/sa/x", ["partner", "v1", "shipments", "7"])
}

test_guardrail_holds_whatever_a_service_allows if {
	decision := data.writ.decision with input as from(shipping, ["orders", "7"]) with data.services.orders.allow as {"everything"}
	decision.tier == "guardrail"
}

test_unknown_trust_domain if {
	partners.deny == {"foreign-beyond-partner-paths"} with input as from("spiffe://other.example/x", ["partner", "v1", "shipments", "7"])
}

test_ours_is_not_a_partner if {
	count(partners.deny) == 0 with input as from("spiffe://example.org/svc/web", ["orders", "7"])
	orders.allow == {"ours"} with input as from("spiffe://example.org/svc/web", ["orders", "7"])
}

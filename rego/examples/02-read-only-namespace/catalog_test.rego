package catalog_test

decide(id, method) := decision if {
	decision := data.writ.decision with input as {
		"layer": "request",
		"source": {"id": id, "authn": "mtls"},
		"destination": {"service": "catalog", "id": "spiffe://example.org/ns/shop/sa/catalog"},
		"request": {"method": method, "segments": ["products", "7"]},
		"time": "2030-01-08T09:30:00Z",
	}
}

test_namespace_reads if {
	every account in ["web", "support", "importer"] {
		decide(concat("", ["spiffe://example.org/ns/shop/sa/", account]), "GET").rules == {"shop-reads"}
	}
}

test_namespace_does_not_write if {
	every method in ["POST", "PUT", "DELETE", "TRACE"] {
		decide("spiffe://example.org/ns/shop/sa/web", method).tier == "default-deny"
	}
}

test_importer_writes if decide("spiffe://example.org/ns/shop/sa/importer", "PUT").rules == {"importer-writes"}

test_others_do_not_read if {
	every id in [
		"spiffe://example.org/ns/shop2/sa/web",
		"spiffe://example.org/ns/ops/sa/web",
		"spiffe://partner.example/ns/shop/sa/web",
		"spiffe://example.org/svc/shop",
		"",
	] {
		decide(id, "GET").tier == "default-deny"
	}
}

package legacy_test

decide(caller, method, segments, now) := decision if {
	decision := data.writ.decision with input as {
		"layer": "request",
		"source": {"id": concat("", ["spiffe://example.org/svc/", caller]), "authn": "mtls"},
		"destination": {"service": "legacy", "id": "spiffe://example.org/svc/legacy"},
		"request": {"method": method, "segments": segments},
		"time": now,
	}
		with time.now_ns as time.parse_rfc3339_ns(now) # What expires does so by this clock.
}

now := "2030-01-08T09:30:00Z"

test_known if {
	decide("reports", "GET", ["export", "2030", "csv"], now).rules == {"reports-reads"}
	decide("batch", "POST", ["jobs", "7"], now).rules == {"batch"}
}

# Would be denied. While the service is observed, they pass and are on record.
test_unknown if {
	decide("reports", "POST", ["export"], now).tier == "default-deny"
	decide("batch", "DELETE", ["jobs", "7"], now).tier == "default-deny"
	decide("web", "GET", ["export"], now).tier == "default-deny"
}

test_dashboard_ends if {
	decide("dashboard", "GET", ["export", "daily"], "2030-12-31T23:59:59Z").rules == {"old-dashboard"}
	decide("dashboard", "GET", ["export", "daily"], "2031-01-01T00:00:00Z").tier == "default-deny"
}

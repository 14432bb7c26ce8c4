package freeze_test

# The clock of break-glass is the evaluation's, which a test sets, too.
decide(source, method, now) := decision if {
	decision := data.writ.decision with input as {
		"layer": "request",
		"source": {"id": source, "authn": "mtls"},
		"destination": {"service": "orders", "id": "spiffe://example.org/svc/orders"},
		"request": {"method": method, "segments": ["orders"]},
		"time": now,
	}
		with time.now_ns as time.parse_rfc3339_ns(now)
}

web := "spiffe://example.org/svc/web"

oncall := "spiffe://example.org/svc/oncall"

test_before_and_after if {
	decide(web, "POST", "2030-12-20T16:59:59Z").tier == "service-allow"
	decide(web, "POST", "2031-01-07T07:00:00Z").tier == "service-allow"
}

test_reading_goes_on if decide(web, "GET", "2030-12-24T10:30:00Z").tier == "service-allow"

test_no_changes if {
	decide(web, "POST", "2030-12-24T10:30:00Z") == {"verdict": "deny", "tier": "overridable-guardrail", "rules": {"change-freeze"}}
}

test_break_glass_for_an_hour if {
	decide(oncall, "POST", "2030-12-24T10:29:59Z").tier == "overridable-guardrail"
	decide(oncall, "POST", "2030-12-24T10:30:00Z") == {"verdict": "allow", "tier": "break-glass", "rules": {"incident-42"}}
	decide(oncall, "POST", "2030-12-24T11:29:59Z").tier == "break-glass"
	decide(oncall, "POST", "2030-12-24T11:30:00Z").tier == "overridable-guardrail"
}

test_break_glass_is_for_one if decide(web, "POST", "2030-12-24T10:45:00Z").tier == "overridable-guardrail"

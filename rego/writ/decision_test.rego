package writ_test

base := {
	"version": 1,
	"direction": "inbound",
	"layer": "request",
	"source": {"id": "spiffe://example.org/svc/web", "trust_domain": "example.org", "path": "/svc/web", "authn": "mtls"},
	"destination": {"service": "orders", "id": "spiffe://example.org/svc/orders", "port": 8443},
	"time": "2030-01-01T12:30:00Z",
}

catalogue := {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}

glass := {"incident-7": {
	"service": "orders",
	"source_ids": ["spiffe://example.org/svc/web"],
	"granted": "2030-01-01T12:00:00Z",
	"expires": "2030-01-01T13:00:00Z",
	"approvers": ["ann", "bob"],
	"ticket": "INC-7",
}}

# 2030-01-01T12:30:00Z
now := 1893501000000000000

decide(guardrails, broken, service) := decision if {
	decision := data.writ.decision with input as base
		with data.writ.services as catalogue
		with data.writ.break_glass as broken
		with data.guardrails as guardrails
		with data.services as {"orders": service}
		with time.now_ns as now
}

test_default_deny if decide({}, {}, {}) == {"verdict": "deny", "tier": "default-deny", "rules": set()}

test_allow_by_id if {
	decide({}, {}, {"allow": {"reads"}}) == {"verdict": "allow", "tier": "service-allow", "rules": {"reads"}}
}

test_allow_by_boolean if {
	decide({}, {}, {"allow": true}) == {"verdict": "allow", "tier": "service-allow", "rules": {"services.orders.allow"}}
}

test_allow_must_be_set_or_true if {
	every value in [false, "yes", 1, null, ["reads"], {"reads": true}, set()] {
		decide({}, {}, {"allow": value}).tier == "default-deny"
	}
}

test_deny_that_is_no_set_denies if {
	every value in [true, "yes", 1, null, ["x"], {"x": true}, {"id"}] {
		decide({}, {}, {"allow": true, "deny": value}).tier == "service-deny"
		decide({"g": {"deny": value}}, {}, {"allow": true}).tier == "guardrail"
		decide({"g": {"deny_overridable": value}}, {}, {"allow": true}).tier == "overridable-guardrail"
	}
	decide({}, {}, {"allow": true, "deny": false}).tier == "service-allow"
	decide({}, {}, {"allow": true, "deny": set()}).tier == "service-allow"
}

test_service_deny_wins_over_allow if {
	decide({}, {}, {"allow": {"reads"}, "deny": {"blocked"}}) == {"verdict": "deny", "tier": "service-deny", "rules": {"blocked"}}
}

test_overridable_wins_over_service if {
	decision := decide({"net": {"deny_overridable": {"office-hours"}}}, {}, {"allow": true, "deny": {"blocked"}})
	decision == {"verdict": "deny", "tier": "overridable-guardrail", "rules": {"office-hours"}}
}

test_broken_glass_wins_over_all_but_guardrails if {
	decision := decide({"net": {"deny_overridable": {"office-hours"}}}, glass, {"deny": {"blocked"}})
	decision == {"verdict": "allow", "tier": "break-glass", "rules": {"incident-7"}}
}

test_guardrail_wins_over_broken_glass if {
	decision := decide({"net": {"deny": {"no-foreigners"}}}, glass, {"allow": true})
	decision == {"verdict": "deny", "tier": "guardrail", "rules": {"no-foreigners"}}
}

test_all_guardrails_are_named if {
	decide({"a": {"deny": {"x"}}, "b": {"deny": {"y"}}}, {}, {}).rules == {"x", "y"}
}

test_unknown_service if {
	decision := data.writ.decision with input as object.union(base, {"destination": {"service": "nobody"}})
		with data.writ.services as catalogue
		with data.services as {"nobody": {"allow": true}}
	decision.verdict == "deny"
	decision.tier == "default-deny"
	decision.reason == `service "nobody" is not in the catalogue`
}

glass_with(change) := {"incident-7": object.union(glass["incident-7"], change)}

test_glass_conditions if {
	every change in [
		{"service": "payments"},
		{"source_ids": ["spiffe://example.org/svc/other"]},
		{"approvers": ["ann"]},
		{"approvers": ["ann", " ANN "]},
		{"ticket": ""},
		{"expires": "2030-01-01T13:00:01Z"},
		{"granted": "2030-01-01T12:30:01Z"},
		{"granted": "2030-01-01T11:40:00Z", "expires": "2030-01-01T12:30:00Z"},
	] {
		decide({}, glass_with(change), {}).tier == "default-deny"
	}
}

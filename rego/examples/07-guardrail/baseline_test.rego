package baseline_test

request(segments) := {
	"layer": "request",
	"source": {"id": "spiffe://example.org/svc/web", "authn": "mtls"},
	"destination": {"service": "files"},
	"request": {"method": "GET", "segments": segments},
}

test_allowed_by_the_team if {
	decision := data.writ.decision with input as request(["reports", "7"])
	decision == {"verdict": "allow", "tier": "service-allow", "rules": {"everybody"}}
}

test_internal if {
	every segments in [["internal"], ["internal", ""], ["internal", "metrics"]] {
		decision := data.writ.decision with input as request(segments)
		decision == {"verdict": "deny", "tier": "guardrail", "rules": {"internal-is-for-nobody"}}
	}
}

test_anonymous if {
	nobody := object.union(request(["reports", "7"]), {"source": {"id": "", "authn": "none"}})
	decision := data.writ.decision with input as nobody
	decision == {"verdict": "deny", "tier": "guardrail", "rules": {"anonymous"}}
}

test_anonymous_connection if {
	connection := {"layer": "connection", "source": {"id": "", "authn": "none"}, "destination": {"service": "files"}}
	decision := data.writ.decision with input as connection
	decision.tier == "guardrail"
}

test_break_glass_does_not_help if {
	glass := {"x": {
		"service": "files", "source_ids": ["spiffe://example.org/svc/web"], "ticket": "INC-7",
		"approvers": ["ann", "bob"], "granted": "2030-01-08T09:00:00Z", "expires": "2030-01-08T10:00:00Z",
	}}
	decision := data.writ.decision with input as request(["internal"])
		with data.writ.break_glass as glass
		with time.now_ns as time.parse_rfc3339_ns("2030-01-08T09:30:00Z")
	decision.tier == "guardrail"
}

package guardrails_test

from(trust_domain) := {
	"layer": "request",
	"source": {"trust_domain": trust_domain},
	"destination": {"service": "{{.Service}}"},
}

test_foreigners_are_denied if {
	decision := data.writ.decision with input as from("other.example")
	decision.rules == {"foreign-trust-domain"}
}

test_our_own_pass if {
	decision := data.writ.decision with input as from("{{.TrustDomain}}")
	decision.tier != "guardrail"
}

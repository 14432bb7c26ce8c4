package guardrails_test

import data.guardrails.trust_domain

test_foreigners_are_denied if {
	trust_domain.deny == {"foreign-trust-domain"} with input as {"source": {"trust_domain": "other.example"}}
}

test_our_own_pass if {
	count(trust_domain.deny) == 0 with input as {"source": {"trust_domain": "{{.TrustDomain}}"}}
}

# Tests run before a revision is put in force; one that fails keeps it out.
package service_test

request(caller, method, segments) := {
	"layer": "request",
	"source": {"id": caller, "trust_domain": "{{.TrustDomain}}"},
	"destination": {"service": "{{.Service}}"},
	"request": {"protocol": "http", "method": method, "segments": segments},
}

web := "spiffe://{{.TrustDomain}}/svc/web"

test_web_reads if {
	decision := data.writ.decision with input as request(web, "GET", ["hello"])
	decision.verdict == "allow"
	decision.rules == {"web-reads"}
}

test_web_does_not_write if {
	decision := data.writ.decision with input as request(web, "POST", ["hello"])
	decision.tier == "default-deny"
}

test_others_do_not_read if {
	decision := data.writ.decision with input as request("spiffe://{{.TrustDomain}}/svc/other", "GET", ["hello"])
	decision.tier == "default-deny"
}

test_admin_is_closed if {
	decision := data.writ.decision with input as request(web, "GET", ["admin", "users"])
	decision.rules == {"admin-is-closed"}
}

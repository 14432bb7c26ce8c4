# A service may allow a partner only what this names. Which workloads of the
# partner may do it is the service's to say.
package guardrails.partners

import data.writ.http
import data.writ.spiffe

deny contains "foreign-beyond-partner-paths" if {
	input.layer == "request"
	input.source.authn == "mtls"
	not spiffe.ours(input.source.id)
	not partner_path
}

partner_path if {
	input.layer == "request"
	some pattern in data.partners[spiffe.trust_domain(input.source.id)]
	http.path(pattern)
}

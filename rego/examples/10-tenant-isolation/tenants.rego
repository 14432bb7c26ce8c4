# For every service: a path that names a tenant belongs to a header that names
# the same, once.
package guardrails.tenants

import data.writ.http

deny contains "tenant-header-differs" if {
	input.layer == "request"
	http.path("/tenants/{**}")
	not same_tenant
}

same_tenant if {
	input.layer == "request"
	http.header("x-tenant") == input.request.segments[1]
}

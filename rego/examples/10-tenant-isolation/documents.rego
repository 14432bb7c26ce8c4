package services.documents

import data.writ.http
import data.writ.spiffe

# Each tenant has a namespace of its own. Who calls, what the path names and
# what the header tells the application must be the same tenant.
allow contains "own-tenant" if {
	http.path("/tenants/{*}/documents/{**}")
	tenant := input.request.segments[1]
	spiffe.namespace(input.source.id) == tenant
	http.header("x-tenant") == tenant
}

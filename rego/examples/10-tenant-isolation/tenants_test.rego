package tenants_test

import data.guardrails.tenants
import data.services.documents

request(namespace, tenant, header) := {
	"layer": "request",
	"source": {"id": concat("", ["spiffe://example.org/ns/", namespace, "/sa/app"])},
	"destination": {"id": "spiffe://example.org/svc/documents"},
	"request": {"method": "GET", "segments": ["tenants", tenant, "documents", "7"], "headers": {"x-tenant": header}},
}

test_own if {
	documents.allow == {"own-tenant"} with input as request("acme", "acme", ["acme"])
	count(tenants.deny) == 0 with input as request("acme", "acme", ["acme"])
}

test_other_tenant if {
	count(documents.allow) == 0 with input as request("acme", "initech", ["initech"])
	count(documents.allow) == 0 with input as request("acme", "acme", ["initech"])
	count(documents.allow) == 0 with input as request("acme", "initech", ["acme"])
}

# The application might read the first or the last.
test_header_twice if {
	count(documents.allow) == 0 with input as request("acme", "acme", ["acme", "initech"])
	tenants.deny == {"tenant-header-differs"} with input as request("acme", "acme", ["acme", "initech"])
}

test_header_missing if {
	without := object.remove(request("acme", "acme", []), ["request"])
	bare := object.union(without, {"request": {"method": "GET", "segments": ["tenants", "acme", "documents", "7"], "headers": {}}})
	tenants.deny == {"tenant-header-differs"} with input as bare
	tenants.deny == {"tenant-header-differs"} with input as object.union(bare, {"request": {"segments": ["tenants"]}})
}

# %2F stays inside of its segment: it cannot pretend to be another tenant.
test_encoded_slash if {
	count(documents.allow) == 0 with input as request("acme", "acme/documents/../initech", ["acme"])
	count(documents.allow) == 0 with input as request("acme", "ACME", ["ACME"])
}

test_other_paths if {
	count(tenants.deny) == 0 with input as object.union(request("acme", "acme", ["x"]), {"request": {"segments": ["health"]}})
}

package admin_test

import data.admin

shop := {
	"caller": {"id": "spiffe://example.org/team/shop", "trust_domain": "example.org", "path": "/team/shop"},
	"service": "spire.api.server.entry.v1.Entry",
	"rpc": "BatchCreateEntry",
	"method": "/spire.api.server.entry.v1.Entry/BatchCreateEntry",
	"targets": ["spiffe://example.org/svc/shop/web"],
	"parents": ["spiffe://example.org/node/one"],
	"request": {"entries": [{"spiffe_id": {"trust_domain": "example.org", "path": "/svc/shop/web"}}]},
}

test_own_entries if admin.allow["shop-writes-its-entries"] with input as shop

test_nothing_else if count(admin.allow) == 0 with input as object.union(shop, {"targets": ["spiffe://example.org/svc/shop/web", "spiffe://example.org/svc/shopping"]})

test_not_everything if count(admin.allow) == 0 with input as object.union(shop, {"rpc": "ListEntries", "targets": ["/"], "parents": []})

test_no_administrators if count(admin.allow) == 0 with input as object.union(shop, {"targets": ["spiffe://example.org/svc/shop/web", "/"]})

test_on_call_reads if admin.allow["on-call-reads"] with input as {
	"caller": {"id": "spiffe://example.org/people/on-call/ann"},
	"rpc": "ListAgents", "service": "spire.api.server.agent.v1.Agent", "targets": ["/"], "parents": [],
}

test_on_call_changes_nothing if count(admin.allow) == 0 with input as {
	"caller": {"id": "spiffe://example.org/people/on-call/ann"},
	"rpc": "BanAgent", "service": "spire.api.server.agent.v1.Agent", "targets": ["spiffe://example.org/spire/agent/x"], "parents": [],
}

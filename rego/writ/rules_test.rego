package writ_test

# Conditions and rules in the normal form, as package policy/rules makes them.
is(field, texts) := {"field": field, "name": "", "op": "in", "not": false, "values": {text: true | some text in texts}}

none_of(condition) := object.union(condition, {"not": true})

yaml_rule(from, to, when) := {"from": from, "to": to, "when": when}

from_web := [[is("source.id", ["spiffe://example.org/svc/web"])]]

everything := [[]]

request := {"protocol": "http", "method": "GET", "host": "orders", "path": "/a/b", "segments": ["a", "b"], "query": {}, "headers": {"x-a": ["1", "2"]}, "content_length": 0}

ask(guardrails, service, change) := decision if {
	decision := data.writ.decision with input as object.union(object.union(base, {"request": request}), change)
		with data.writ.services as catalogue
		with data.writ.rules as {"guardrails": guardrails, "services": {"orders": service}}
		with time.now_ns as now
}

test_yaml_tiers if {
	rule := yaml_rule(from_web, everything, [])
	ask({}, {"allow": {"a": rule}}, {}) == {"verdict": "allow", "tier": "service-allow", "rules": {"a"}}
	ask({}, {"allow": {"a": rule}, "deny": {"d": rule}}, {}) == {"verdict": "deny", "tier": "service-deny", "rules": {"d"}}
	ask({"deny_overridable": {"o": rule}}, {"allow": {"a": rule}}, {}) == {"verdict": "deny", "tier": "overridable-guardrail", "rules": {"o"}}
	ask({"deny_overridable": {"o": rule}, "deny": {"g": rule}}, {}, {}) == {"verdict": "deny", "tier": "guardrail", "rules": {"g"}}
	ask({}, {}, {}) == {"verdict": "deny", "tier": "default-deny", "rules": set()}
}

test_yaml_beside_rego if {
	rule := yaml_rule(from_web, everything, [])
	decision := ask({}, {"allow": {"a": rule, "b": yaml_rule([], everything, [])}}, {}) with data.services.orders as {"allow": {"c"}}
	decision.rules == {"a", "c"}
}

allows(rule, change) if ask({}, {"allow": {"a": rule}}, change).verdict == "allow"

test_yaml_alternatives if {
	never := is("source.id", ["spiffe://example.org/svc/other"])
	allows(yaml_rule([[never], from_web[0]], everything, []), {})
	not allows(yaml_rule([[never]], everything, []), {})
	not allows(yaml_rule([array.concat(from_web[0], [never])], everything, []), {})
	not allows(yaml_rule([], everything, []), {})
	not allows(yaml_rule(from_web, [], []), {})
	not allows(yaml_rule(from_web, everything, [never]), {})
	allows(yaml_rule(from_web, everything, [none_of(never)]), {})
}

test_yaml_absent_fields_have_no_values if {
	header := {"field": "request.headers", "name": "x-b", "op": "exists", "not": false, "values": []}
	not allows(yaml_rule(from_web, [[header]], []), {})
	allows(yaml_rule(from_web, [[none_of(header)]], []), {})
	allows(yaml_rule(from_web, [[object.union(header, {"name": "x-a"})]], []), {})
	allows(yaml_rule(from_web, [[none_of(is("request.grpc.service", ["x"]))]], []), {})
}

test_yaml_expiry if {
	rule := yaml_rule(from_web, everything, [])
	allows(object.union(rule, {"expires_ns": now + 1}), {})
	not allows(object.union(rule, {"expires_ns": now}), {})
}

test_yaml_no_address_is_no_error if {
	every text in ["", "nonsense", "10.0.0.0/8", "10.0.0.1 ", "fe80::1%eth0"] {
		every op in ["cidr", "outside"] {
			condition := {"field": "connection.peer_ip", "name": "", "op": op, "not": false, "values": ["10.0.0.0/8"]}
			not allows(yaml_rule(from_web, [[condition]], []), {"connection": {"peer_ip": text}})
		}
	}
}

fits(pattern, segments) if data.writ.fits(pattern, segments)

test_yaml_paths if {
	pattern := {"head": [{"is": "a"}], "tail": [{"is": "m"}], "open": true, "rest": true}
	fits(pattern, ["a", "m", "x"])
	fits(pattern, ["a", "x", "m", "y", "m"])
	not fits(pattern, ["a", "m"])
	not fits(pattern, ["a", "x", "m"])
	not fits(pattern, [])
	closed := {"head": [{"is": "a"}, {"one": true}], "tail": [], "open": false, "rest": false}
	fits(closed, ["a", "x"])
	not fits(closed, ["a", ""])
	not fits(closed, ["a"])
	not fits(closed, ["a", "x", "y"])
}

# The root rule. Every decision is data.writ.decision; publishers define the
# packages it reads and cannot replace it.
#
# Tiers are tried from the highest to the lowest and the first that has
# something to say decides. A lower tier is not evaluated when a higher one
# has spoken, so that an error in a service's rules cannot hide a guardrail.
#
# "rules" are the ids of the rules that decided: members of a partial set, the
# rule's own path where the rule is a boolean, or the ids of YAML rules, which
# speak in the same tiers (rules.rego).
package writ

decision := {"verdict": "deny", "tier": "guardrail", "rules": absolute} if {
	count(absolute) > 0
} else := {"verdict": "allow", "tier": "break-glass", "rules": broken_glass} if {
	count(broken_glass) > 0
} else := {"verdict": "deny", "tier": "overridable-guardrail", "rules": overridable} if {
	count(overridable) > 0
} else := {"verdict": "deny", "tier": "default-deny", "rules": set(), "reason": reason} if {
	not known_service
	reason := sprintf("service %q is not in the catalogue", [input.destination.service])
} else := {"verdict": "deny", "tier": "service-deny", "rules": denied} if {
	count(denied) > 0
} else := {"verdict": "allow", "tier": "service-allow", "rules": allowed} if {
	count(allowed) > 0
} else := {"verdict": "deny", "tier": "default-deny", "rules": set()}

known_service if data.writ.services[input.destination.service]

# A deny that is neither a set nor false denies: what cannot be read as a
# permission is not one.
absolute contains id if {
	some name
	value := data.guardrails[name].deny
	some id in denials(value, ["guardrails", name, "deny"])
}

overridable contains id if {
	some name
	value := data.guardrails[name].deny_overridable
	some id in denials(value, ["guardrails", name, "deny_overridable"])
}

denied contains id if {
	service := input.destination.service
	value := data.services[service].deny
	some id in denials(value, ["services", service, "deny"])
}

# An allow counts only as a set of ids or as true.
allowed contains id if {
	value := data.services[input.destination.service].allow
	is_set(value)
	some id in value
}

allowed contains concat(".", ["services", service, "allow"]) if {
	service := input.destination.service
	data.services[service].allow == true
}

denials(value, _) := value if is_set(value)

denials(value, path) := {concat(".", path)} if {
	not is_set(value)
	value != false
}

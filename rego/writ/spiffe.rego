# METADATA
# scope: package
# title: SPIFFE IDs
# description: |
#   Each takes an ID as text: `input.source.id`, or any other. What names a
#   namespace, a service account or a service without a trust domain means our
#   own: that of `input.destination.id`, which comes from the signed catalogue
#   and the sidecar's certificate, never from the caller. When it is empty, no
#   ID is ours.
package writ.spiffe

# METADATA
# description: The trust domain of an ID; undefined for a text that is not one.
# custom:
#   example: spiffe.trust_domain(input.source.id) in {"example.org", "partner.example"}
trust_domain(id) := split(id, "/")[2] if startswith(id, "spiffe://")

# METADATA
# description: The parts of an ID's path.
# custom:
#   example: spiffe.segments("spiffe://example.org/ns/shop/sa/web") == ["ns", "shop", "sa", "web"]
segments(id) := array.slice(split(id, "/"), 3, count(id)) if startswith(id, "spiffe://") # count(id) is beyond the end.

# METADATA
# description: |
#   Whether an ID is the prefix or below it, by whole parts:
#   `spiffe://example.org/ns/shop` does not hold `spiffe://example.org/ns/shop2`.
# custom:
#   example: spiffe.under(input.source.id, "spiffe://example.org/ns/shop")
under(id, prefix) if {
	regex.match(`^spiffe://[^/]`, prefix)
	id == trim_suffix(prefix, "/")
}

under(id, prefix) if {
	regex.match(`^spiffe://[^/]`, prefix)
	startswith(id, concat("", [trim_suffix(prefix, "/"), "/"]))
}

# METADATA
# description: |
#   Whether an ID matches a pattern. `*` stands for one part, or within a part
#   for one character or more; a part `**` for any number of parts, also none.
#   A pattern that is not written so matches nothing.
# custom:
#   example: spiffe.matches(input.source.id, "spiffe://example.org/ns/*/sa/web")
matches(id, pattern) if {
	regex.match(`^spiffe:/(/(\*\*|\*|\*?([0-9A-Za-z._-]+\*?)+))+$`, pattern)
	literal := replace(pattern, ".", `\.`)
	deep := replace(literal, "/**", "<")
	wide := replace(deep, "*", "[^/]+")
	regex.match(concat("", ["^", replace(wide, "<", "(/[^/]+)*"), "$"]), id)
}

# METADATA
# description: Whether an ID is of our own trust domain.
# custom:
#   example: spiffe.ours(input.source.id)
ours(id) if trust_domain(id) == trust_domain(input.destination.id)

# METADATA
# description: |
#   The namespace in one of our IDs of the form `spiffe://TD/ns/NAMESPACE/sa/ACCOUNT`,
#   the form of Kubernetes; undefined for any other.
# custom:
#   example: spiffe.namespace(input.source.id) == "shop"
namespace(id) := split(id, "/")[4] if {
	ours(id)
	regex.match(`^spiffe://[^/]+/ns/[^/]+/sa/[^/]+$`, id)
}

# METADATA
# description: The service account in one of our IDs of that form.
# custom:
#   example: spiffe.service_account(input.source.id) in {"web", "support"}
service_account(id) := split(id, "/")[6] if {
	ours(id)
	regex.match(`^spiffe://[^/]+/ns/[^/]+/sa/[^/]+$`, id)
}

# METADATA
# description: The name in one of our IDs of the form `spiffe://TD/svc/NAME`.
# custom:
#   example: spiffe.service("spiffe://example.org/svc/web") == "web"
service(id) := split(id, "/")[4] if {
	ours(id)
	regex.match(`^spiffe://[^/]+/svc/[^/]+$`, id)
}

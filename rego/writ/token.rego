# METADATA
# scope: package
# title: User tokens
# description: |
#   A claim means something only in a token of an issuer that you trust for it,
#   and two claims belong together only if they are of one token. So take a token
#   of `token.verified`, ask `token.by` about it, and then its claims, all in one
#   body:
#
#   ```rego
#   some user in token.verified
#   token.by(user, "https://idp.example.org", "orders")
#   token.claim_has(user, "roles", "clerk")
#   ```
#
#   None of these is true unless `input.token_status` is `valid`.
package writ.token

# METADATA
# description: |
#   The tokens that were verified; undefined, not empty, when there is none, so
#   that `every user in token.verified` does not hold without a user.
# custom:
#   example: count(token.verified) == 1
verified := input.tokens if {
	input.token_status == "valid"
	input.tokens[0]
}

# METADATA
# description: Whether a token is of this issuer, and made for this audience.
# custom:
#   example: some user in token.verified; token.by(user, "https://idp.example.org", "orders")
by(user, issuer, audience) if {
	input.token_status == "valid"
	user.issuer == issuer
	audience in user.audience
}

# METADATA
# description: Whether a claim has this value.
# custom:
#   example: some user in token.verified; token.claim_is(user, "tenant", "acme")
claim_is(user, name, value) if {
	input.token_status == "valid"
	user.claims[name] == value
}

# METADATA
# description: Whether a claim has one of these values.
# custom:
#   example: some user in token.verified; token.claim_in(user, "tenant", {"acme", "initech"})
claim_in(user, name, values) if {
	input.token_status == "valid"
	user.claims[name] in values
}

# METADATA
# description: Whether a claim that is a list contains this value.
# custom:
#   example: some user in token.verified; token.claim_has(user, "roles", "clerk")
claim_has(user, name, value) if {
	input.token_status == "valid"
	is_array(user.claims[name])
	value in user.claims[name]
}

# METADATA
# description: Whether `scope`, words with a space between them (RFC 8693, section 4.2), contains this one.
# custom:
#   example: some user in token.verified; token.scope(user, "orders:read")
scope(user, word) if {
	input.token_status == "valid"
	is_string(user.claims.scope)
	word in split(user.claims.scope, " ")
}

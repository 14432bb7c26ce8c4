# Breaking the glass: a short allow that two people signed, over overridable
# guardrails and service rules, never over an absolute guardrail.
#
# data.writ.break_glass[id] = {service, source_ids, granted, expires,
# approvers, ticket}, times in RFC 3339. A bundle with a bad entry is refused;
# the conditions are repeated here because this is where they grant.
package writ

broken_glass contains id if {
	some id, entry in data.writ.break_glass
	entry.service == input.destination.service
	known_service
	input.source.authn != "none"
	input.source.id in entry.source_ids
	entry.ticket != ""
	count({lower(trim_space(who)) | some who in entry.approvers}) >= 2
	granted := time.parse_rfc3339_ns(entry.granted)
	expires := time.parse_rfc3339_ns(entry.expires)
	expires - granted <= break_glass_limit_ns
	granted <= time.now_ns()
	time.now_ns() < expires
}

# One hour.
break_glass_limit_ns := 3600000000000

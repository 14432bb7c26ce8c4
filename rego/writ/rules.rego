# YAML rules. They are data.writ.rules, which package policy/rules makes of the
# rules files of a policy:
#
#   services[name].allow, .deny            id → rule
#   guardrails.deny, .deny_overridable     id → rule
#
#   rule       {from, to, when, expires_ns}: speaks when some list of from, some
#              list of to and the list when hold, before it expires
#   condition  {field, name, op, not, values}: holds when one value of the field
#              passes the operator; with not, when none does
#
# A field that is absent has no values. Nothing here is an error: what does not
# parse does not pass.
#
# A policy without YAML rules is loaded without this file.
package writ

absolute contains id if {
	some id, rule in data.writ.rules.guardrails.deny
	speaks(rule)
}

overridable contains id if {
	some id, rule in data.writ.rules.guardrails.deny_overridable
	speaks(rule)
}

denied contains id if {
	some id, rule in data.writ.rules.services[input.destination.service].deny
	speaks(rule)
}

allowed contains id if {
	some id, rule in data.writ.rules.services[input.destination.service].allow
	speaks(rule)
}

speaks(rule) if {
	not expired(rule)
	some source in rule.from
	all_hold(source)
	some operation in rule.to
	all_hold(operation)
	all_hold(rule.when)
}

# Only rules that allow have this; one that denies goes on.
expired(rule) if rule.expires_ns <= time.now_ns()

all_hold(conditions) if {
	every condition in conditions {
		holds(condition)
	}
}

holds(condition) if {
	not condition.not
	met(condition)
}

holds(condition) if {
	condition.not
	not met(condition)
}

met(condition) if {
	condition.op != "token"
	some value in values(condition.field, condition.name)
	passes(condition.op, value, condition.values)
}

# All is asked of one and the same token.
met(condition) if {
	condition.op == "token"
	some token in input.tokens
	every one in condition.values {
		some value in token_values(one.field, one.name, token)
		passes(one.op, value, one.values)
	}
}

values("direction", _) := [input.direction]

values("layer", _) := [input.layer]

values("source.id", _) := [input.source.id]

values("source.trust_domain", _) := [input.source.trust_domain]

values("source.path", _) := [input.source.path]

values("source.authn", _) := [input.source.authn]

values("destination.id", _) := [input.destination.id]

values("destination.port", _) := [input.destination.port]

values("request.protocol", _) := [input.request.protocol]

values("request.method", _) := [input.request.method]

values("request.host", _) := [input.request.host]

# The host in lower case, without its port.
values("host", _) := [split(lower(input.request.host), ":")[0]]

values("request.path", _) := [input.request.path]

values("request.segments", _) := [input.request.segments]

values("request.headers", name) := input.request.headers[name]

values("request.query", name) := input.request.query[name]

values("request.grpc.service", _) := [input.request.grpc.service]

values("request.grpc.method", _) := [input.request.grpc.method]

values("request.content_length", _) := [input.request.content_length]

values("connection.peer_ip", _) := [input.connection.peer_ip]

values("connection.client_ip", _) := [input.connection.client_ip]

values("connection.tls_version", _) := [input.connection.tls_version]

values("connection.sni", _) := [input.connection.sni]

values("connection.alpn", _) := [input.connection.alpn]

values("token_status", _) := [input.token_status]

values("time", _) := [time.now_ns()]

token_values("token.issuer", _, token) := [token.issuer]

token_values("token.subject", _, token) := [token.subject]

# A claim that is a text, or the texts of a list.
token_values("token.claim", name, token) := [token.claims[name]] if is_string(token.claims[name])

token_values("token.claim", name, token) := [text | some text in token.claims[name]; is_string(text)] if is_array(token.claims[name])

passes("in", text, texts) if texts[text]

passes("prefix", text, texts) if {
	some prefix in texts
	startswith(text, prefix)
}

passes("suffix", text, texts) if {
	some suffix in texts
	endswith(text, suffix)
}

passes("regex", text, texts) if {
	some pattern in texts
	regex.match(pattern, text)
}

passes("cidr", text, cidrs) if {
	is_ip_address(text)
	some cidr in cidrs
	net.cidr_contains(cidr, text)
}

passes("outside", text, cidrs) if {
	is_ip_address(text)
	every cidr in cidrs {
		not net.cidr_contains(cidr, text)
	}
}

passes("exists", _, _) := true

passes("range", number, ranges) if {
	some range in ranges
	range.low <= number
	number <= range.high
}

# Seconds of the day, in the offset's own day.
passes("window", ns, window) if {
	local := ns + window.offset_ns
	window.days[time.weekday(local)]
	[hours, minutes, seconds] := time.clock(local)
	second := ((hours * 3600) + (minutes * 60)) + seconds
	window.from <= second
	second < window.to
}

passes("path", segments, patterns) if {
	some pattern in patterns
	fits(pattern, segments)
}

# net.cidr_contains is an error for what is no address. An IPv6 address may have
# this mask, too.
is_ip_address(text) if net.cidr_is_valid(concat("", [text, "/32"]))

# A pattern is head, any number of segments if open, tail, and one segment or
# more if rest.
fits(pattern, segments) if {
	some from in tail_places(pattern, count(segments) - count(pattern.tail))
	parts_fit(pattern.head, segments, 0)
	parts_fit(pattern.tail, segments, from)
}

# Where the tail can be; last is where it is when nothing follows.
tail_places(pattern, last) := [last] if {
	not pattern.open
	not pattern.rest
	last == count(pattern.head)
}

tail_places(pattern, last) := [count(pattern.head)] if {
	not pattern.open
	pattern.rest
	last > count(pattern.head)
}

tail_places(pattern, last) := [last] if {
	pattern.open
	not pattern.rest
	last >= count(pattern.head)
}

tail_places(pattern, last) := numbers.range(count(pattern.head), last - 1) if {
	pattern.open
	pattern.rest
	last > count(pattern.head)
}

parts_fit(parts, segments, from) if {
	every i, part in parts {
		part_fits(part, segments[from + i])
	}
}

part_fits(part, segment) if part.is == segment

part_fits(part, segment) if {
	part.one
	segment != ""
}

part_fits(part, segment) if regex.match(part.regex, segment)

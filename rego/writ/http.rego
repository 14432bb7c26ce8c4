# METADATA
# scope: package
# title: HTTP requests
# description: |
#   These read `input.request` and are undefined where there is none; a
#   guardrail that uses them tests `input.layer == "request"`, as always.
#   Names of headers may be written in any case. A request can carry a header or
#   a parameter more than once, and the application reads the one it likes: where
#   it matters which, use `header` and `query`, which want exactly one.
package writ.http

# METADATA
# description: Whether the method is one that reads (GET, HEAD or OPTIONS).
# custom:
#   example: http.reads
reads if input.request.method in {"GET", "HEAD", "OPTIONS"}

# METADATA
# description: |
#   Whether the method is one that writes (POST, PUT, PATCH or DELETE). A method
#   may be neither: a deny of everything but reading is `not http.reads`.
# custom:
#   example: not http.writes
writes if input.request.method in {"POST", "PUT", "PATCH", "DELETE"}

# METADATA
# description: |
#   Whether the path of the request matches a pattern; see `path_match`.
# custom:
#   example: http.path("/orders/{*}")
path(pattern) if path_match(pattern, input.request.segments)

# METADATA
# description: |
#   Whether decoded segments match a pattern. A pattern begins with `/` and is
#   compared part by part, as `input.request.segments` are split: `/a/` has an
#   empty second part and is not `/a`. In a part, `*` is any run of characters
#   of that segment. A part `{*}` is exactly one segment that is not empty, a part
#   `{**}` any number of segments, also none, once in a pattern at most. A last
#   part that is just `*` is one segment or more. Any other brace makes a pattern
#   that matches nothing.
# custom:
#   example: http.path_match("/orders/{**}", ["orders", "7", "items"])
path_match(pattern, segments) if {
	pattern != "/"
	_is_path_pattern(pattern)
	regex.match(_path_regex(pattern), _encoded(segments))
}

path_match("/", segments) if count(segments) == 0

_is_path_pattern(pattern) if {
	is_string(pattern)
	regex.match(`^(/([^{}/]*|\{\*\}|\{\*\*\}))+$`, pattern)
	count(split(pattern, "{**}")) <= 2
}

# In the encoded form a slash stands between segments only, and of what is left
# in a segment "." and "+" alone mean something to a regular expression.
_encoded(segments) := concat("", [concat("", ["/", urlquery.encode(s)]) | some s in segments])

_path_regex(pattern) := concat("", ["^", translated, "$"]) if {
	wildcards := strings.replace_n(
		{"%2F%7B%2A%7D": "<", "%2F%7B%2A%2A%7D": ">", ".": `\.`, "+": `\+`},
		urlquery.encode(pattern),
	)
	last := regex.replace(wildcards, "%2F%2A$", "&")
	translated := strings.replace_n(
		{"%2F": "/", "%2A": "([^/%]|%[0-9A-F]{2})*", "<": "/[^/]+", ">": "(/[^/]*)*", "&": "(/[^/]*)+"},
		last,
	)
}

# METADATA
# description: |
#   The value of a header that the request carries exactly once.
# custom:
#   example: http.header("X-Tenant") == "acme"
header(name) := value if [value] = input.request.headers[lower(name)]

# METADATA
# description: Whether any value of a header is this one, as a whole.
# custom:
#   example: http.header_has("accept", "text/html")
header_has(name, value) if value in input.request.headers[lower(name)]

# METADATA
# description: |
#   Whether any value of a header matches a regular expression (RE2) as a whole:
#   it is taken to begin with `^` and to end with `$`.
# custom:
#   example: http.header_matches("content-type", "application/json(;.*)?")
header_matches(name, pattern) if {
	some value in input.request.headers[lower(name)]
	regex.match(concat("", ["^(?:", pattern, ")$"]), value)
}

# METADATA
# description: The value of a query parameter that the request carries exactly once.
# custom:
#   example: http.query("dry_run") == "true"
query(name) := value if [value] = input.request.query[name]

# METADATA
# description: Whether any value of a query parameter is this one, as a whole.
# custom:
#   example: http.query_has("fields", "total")
query_has(name, value) if value in input.request.query[name]

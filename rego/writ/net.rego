# METADATA
# scope: package
# title: Addresses
# description: |
#   `input.connection.peer_ip` is the other end of the connection. Both are false
#   for a text that is no address, such as an empty one. So each is safe in an
#   `allow` as it stands, and in a `deny` behind `not`:
#
#   | to | write |
#   |---|---|
#   | allow from some networks | `net.in_cidr(ip, office)` in an `allow` |
#   | deny from all but some | `not net.in_cidr(ip, office)` in a `deny` |
#   | deny from some | `not net.outside_cidr(ip, blocked)` in a `deny` |
#
#   A network that is not written as a CIDR is an error, and the request is
#   denied: it is the policy that is wrong.
#
#   With this import, OPA's own `net.cidr_contains` is hidden in the file; import
#   it under another name (`import data.writ.net as writ_net`) to have both.
package writ.net

# METADATA
# description: Whether a text is an address that is in one of these networks.
# custom:
#   example: net.in_cidr(input.connection.peer_ip, {"10.0.0.0/8", "2001:db8::/32"})
in_cidr(address, cidrs) if {
	is_address(address)
	some cidr in cidrs
	net.cidr_contains(cidr, address)
}

# METADATA
# description: Whether a text is an address that is in none of these networks.
# custom:
#   example: net.outside_cidr(input.connection.peer_ip, {"192.0.2.0/24"})
outside_cidr(address, cidrs) if {
	is_address(address)
	not in_cidr(address, cidrs)
}

# METADATA
# description: Whether a text is an address, IPv4 or IPv6, without a port or a zone.
# custom:
#   example: net.is_address(input.connection.peer_ip)
is_address(text) if net.cidr_is_valid(concat("", [text, "/32"]))

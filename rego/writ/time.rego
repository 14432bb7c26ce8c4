# METADATA
# scope: package
# title: Time
# description: |
#   All ask about `input.time`, the time of the decision. A zone is a name of the
#   time zone database, such as `UTC` or `Europe/Vienna`; its daylight saving is
#   followed. A zone that does not exist is an error, and the request is denied.
#
#   With this import, OPA's own `time.now_ns` is hidden in the file; import it
#   under another name (`import data.writ.time as writ_time`) to have both.
package writ.time

# METADATA
# description: Whether it is the first instant (RFC 3339) or later, and before the second.
# custom:
#   example: time.between("2029-12-24T00:00:00Z", "2030-01-02T00:00:00+01:00")
between(from, until) if {
	now := time.parse_rfc3339_ns(input.time)
	time.parse_rfc3339_ns(from) <= now
	now < time.parse_rfc3339_ns(until)
}

# METADATA
# description: The day of the week in a zone, `Monday` to `Sunday`.
# custom:
#   example: time.weekday("Europe/Vienna") in {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday"}
weekday(zone) := time.weekday([time.parse_rfc3339_ns(input.time), zone])

# METADATA
# description: |
#   Whether the clock in a zone shows the first time (`HH:MM`) or later, and less
#   than the second. When the second is the smaller one, the hours go over
#   midnight. A time that is not one is an error, and the request is denied.
# custom:
#   example: time.hours("08:00", "17:30", "Europe/Vienna")
hours(from, until, zone) if {
	_minute(from) <= _minute(until)
	_minute(from) <= _minute(_clock(zone))
	_minute(_clock(zone)) < _minute(until)
}

hours(from, until, zone) if {
	_minute(from) > _minute(until)
	_minute(from) <= _minute(_clock(zone))
}

hours(from, until, zone) if {
	_minute(from) > _minute(until)
	_minute(_clock(zone)) < _minute(until)
}

_clock(zone) := sprintf("%02d:%02d", array.slice(time.clock([time.parse_rfc3339_ns(input.time), zone]), 0, 2))

# Any date does: it is the difference that counts.
_minute(clock) := time.parse_rfc3339_ns(concat("", ["2000-01-01T", clock, ":00Z"]))

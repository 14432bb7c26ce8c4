package console_test

import data.services.console

# It is winter: 09:30 UTC is 10:30 in Vienna, on a Tuesday.
request := {
	"source": {"id": "spiffe://example.org/ns/ops/sa/shell"},
	"destination": {"id": "spiffe://example.org/svc/console"},
	"request": {"method": "POST", "segments": ["admin", "users"]},
	"connection": {"peer_ip": "192.0.2.17"},
	"time": "2030-01-08T09:30:00Z",
}

test_in_office_hours if console.allow == {"admin-in-office-hours"} with input as request

test_hours_are_those_of_the_zone if {
	every now, allowed in {
		"2030-01-08T06:59:59Z": 0,
		"2030-01-08T07:00:00Z": 1,
		"2030-01-08T16:59:59Z": 1,
		"2030-01-08T17:00:00Z": 0,
		"2030-07-09T06:00:00Z": 1,
		"2030-07-09T16:00:00Z": 0,
		"2030-01-12T09:30:00Z": 0,
	} {
		count(console.allow) == allowed with input as request with input.time as now
	}
}

test_from_elsewhere if {
	every address in ["198.51.100.7", "", "unknown", "192.0.2.17:443"] {
		count(console.allow) == 0 with input as request with input.connection.peer_ip as address
	}
	count(console.allow) == 1 with input as request with input.connection.peer_ip as "2001:db8:1::9"
}

test_others if {
	count(console.allow) == 0 with input as object.union(request, {"source": {"id": "spiffe://example.org/ns/shop/sa/web"}})
}

test_status_at_any_time if {
	night := object.union(request, {"time": "2030-01-08T02:00:00Z", "request": {"method": "GET", "segments": ["status"]}})
	console.allow == {"status"} with input as night
}

package services.console

import data.writ.http
import data.writ.net
import data.writ.spiffe
import data.writ.time

allow contains "admin-in-office-hours" if {
	spiffe.namespace(input.source.id) == "ops"
	http.path("/admin/{**}")
	from_office
	office_hours
}

allow contains "status" if {
	spiffe.ours(input.source.id)
	http.reads
	http.path("/status")
}

from_office if net.in_cidr(input.connection.peer_ip, data.office.networks)

office_hours if {
	time.weekday(data.office.zone) in {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday"}
	time.hours("08:00", "18:00", data.office.zone)
}

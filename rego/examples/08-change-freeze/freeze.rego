package guardrails.freeze

import data.writ.http
import data.writ.time

deny_overridable contains "change-freeze" if {
	input.layer == "request"
	not http.reads
	time.between(data.freeze.from, data.freeze.until)
}

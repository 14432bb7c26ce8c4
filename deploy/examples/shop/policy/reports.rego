package services.reports

import data.shop

allow contains "support-reads-reports" if {
	shop.caller == "support"
	shop.reading
}

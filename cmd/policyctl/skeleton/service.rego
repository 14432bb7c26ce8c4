# Who may call {{.Service}}. Whatever no rule allows is denied.
package services["{{.Service}}"]

# The id goes on record with each decision that the rule makes.
allow contains "web-reads" if {
	input.source.id == "spiffe://{{.TrustDomain}}/svc/web"
	input.request.method in {"GET", "HEAD"}
}

# A deny stands above every allow of the service.
deny contains "admin-is-closed" if input.request.segments[0] == "admin"

# Who may administer this control plane over the network. What no rule allows is
# denied; the admin socket on the machine itself is not subject to this policy.
package admin

import data.writ.spiffe

entries := "spire.api.server.entry.v1.Entry"

# People on call may look at everything, and change nothing.
allow contains "on-call-reads" if {
	spiffe.under(input.caller.id, "spiffe://example.org/people/on-call")
	reads
}

# A team writes the entries under its own prefix. `every` over targets: a call
# about everything has the target "/", which is under no prefix; so has one that
# makes or changes an entry which is marked admin or downstream.
allow contains "shop-writes-its-entries" if {
	input.caller.id == "spiffe://example.org/team/shop"
	input.service == entries
	every target in input.targets {
		spiffe.under(target, "spiffe://example.org/svc/shop")
	}
	every parent in input.parents {
		spiffe.under(parent, "spiffe://example.org/node")
	}
}

# The pipeline that publishes policy.
allow contains "ci-pushes-policy" if {
	input.caller.id == "spiffe://example.org/ci/policy"
	input.method == "/writ.policy.v1.Admin/Push"
}

reads if startswith(input.rpc, "List")

reads if startswith(input.rpc, "Get")

reads if startswith(input.rpc, "Count")

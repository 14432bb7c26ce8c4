# A guardrail stands above every service's rules: no allow overrides its deny.
package guardrails.internal_paths

deny contains "internal-is-for-nobody" if {
	input.layer == "request"
	input.request.segments[0] == "internal"
}

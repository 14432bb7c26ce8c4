# A guardrail speaks for all services: no allow overrides its deny. One that
# reads input.request tests input.layer == "request" in the same body.
package guardrails.trust_domain

deny contains "foreign-trust-domain" if input.source.trust_domain != "{{.TrustDomain}}"

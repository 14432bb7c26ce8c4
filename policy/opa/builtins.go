package opa

import (
	"slices"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/bundle"
)

const (
	notOfInput  = "a decision is made of its input alone"
	clock       = "it reads the machine's clock, and a decision is made at input.time"
	unbounded   = "a few bytes of policy make it take any amount of memory"
	endless     = "it does not stop when the time of the decision is over"
	privateKeys = "a policy has no private keys"
	deepParser  = "its parser recurses without a bound, and the end of the stack is the end of the process"
)

// refusedBuiltins are builtins whose answer is not made of their arguments
// alone, or that bring code in, or that one decision could hang or kill the
// process with: running out of memory cannot be recovered from. time.now_ns
// stays: it is input.time. What stays is bounded by boundBuiltins. Those of
// bundle.OutsideBuiltins are admitted where the signed data says so.
var refusedBuiltins = [...]struct{ name, why string }{
	{bundle.HTTPSend, notOfInput},
	{bundle.LookupIP, notOfInput},
	{bundle.OPARuntime, notOfInput},
	{"rand.intn", notOfInput},
	{"uuid.rfc4122", notOfInput},
	{"json.match_schema", notOfInput}, // They follow $ref to URLs and files.
	{"json.verify_schema", notOfInput},
	{"rego.parse_module", "it brings code in"},
	{"io.jwt.encode_sign", privateKeys},
	{"io.jwt.encode_sign_raw", privateKeys},
	{"providers.aws.sign_req", privateKeys},
	{"crypto.x509.parse_keypair", privateKeys},
	{"crypto.x509.parse_rsa_private_key", privateKeys},
	{"crypto.parse_private_keys", privateKeys},
	{"crypto.x509.parse_and_verify_certificates", clock},
	{"crypto.x509.parse_and_verify_certificates_with_options", clock},
	{"bits.lsh", unbounded},                  // The width is an argument.
	{"json.patch", unbounded},                // Each copy doubles the document.
	{"json.marshal_with_options", unbounded}, // Its indent is repeated for each line.
	{"net.cidr_expand", unbounded},           // Use net.cidr_contains.
	{"yaml.unmarshal", unbounded},            // Aliases.
	{"yaml.is_valid", unbounded},
	{"strings.render_template", endless}, // Nested ranges.
	{"graph.reachable_paths", endless},   // There are more paths than atoms.
	{"regex.globs_match", endless},       // The intersection of two globs is a search.
	{"graphql.parse", deepParser},
	{"graphql.parse_and_verify", deepParser},
	{"graphql.parse_query", deepParser},
	{"graphql.parse_schema", deepParser},
	{"graphql.is_valid", deepParser},
	{"graphql.schema_is_valid", deepParser},
}

// capabilities are what a policy may use. Nobody changes them.
var capabilities = sync.OnceValue(func() *ast.Capabilities { return capabilitiesWith(nil) })

// capabilitiesFor also has what the signed data admits.
func capabilitiesFor(outside bundle.Outside) *ast.Capabilities {
	if admitted := outside.Builtins(); len(admitted) > 0 {
		return capabilitiesWith(admitted)
	}
	return capabilities()
}

func capabilitiesWith(admitted []string) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.AllowNet = []string{} // Not nil: nil is every host.
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool {
		if slices.Contains(admitted, b.Name) {
			return false
		}
		for _, r := range refusedBuiltins {
			if r.name == b.Name {
				return true
			}
		}
		return false
	})
	return c
}

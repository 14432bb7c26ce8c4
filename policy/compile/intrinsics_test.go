package compile_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
)

// TestIntrinsicsEqualTheirRules: what is taken as a whole is what the library's
// rules say of it, for generated patterns and segments.
func TestIntrinsicsEqualTheirRules(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string, n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = from[r.IntN(len(from))]
		}
		return out
	}
	parts := []string{"a", "b", "", "*", "{*}", "{**}", "a*", "*b", "a*b*", "a.b", "a+b", "{x}", "%2F", "é", "a b", "**"}
	segments := []string{"a", "b", "", "ab", "a.b", "axb", "a+b", "a/b", "%2F", "é", "a b", "*", "{*}", "abb", "\xff"}
	addresses := []string{"", "10.1.2.3", "::1", "::ffff:10.1.2.3", "fe80::1%eth0", "10.0.0.0/8", "10.1.2.3/32", "01.2.3.4", "1.2.3", "x", " 10.1.2.3", "10.1.2.3:80", "[::1]"}
	for range 40 {
		var rules strings.Builder
		for i := range 12 {
			fmt.Fprintf(&rules, "allow contains \"p%d\" if http.path(%q)\n\n", i, "/"+strings.Join(pick(parts, r.IntN(4)+1), "/"))
		}
		p, prog, _ := compiled(t, catalogue+"-- orders.rego --\npackage services.orders\n\nimport data.writ.http\nimport data.writ.net\n\n"+rules.String()+`
allow contains "root" if http.path("/")

allow contains "wrong" if http.path("a")

allow contains "address" if net.is_address(input.connection.peer_ip)

allow contains "inside" if net.in_cidr(input.connection.peer_ip, {"10.0.0.0/8", "::/64"})

allow contains "outside" if net.outside_cidr(input.connection.peer_ip, {"10.1.0.0/16"})
`)
		topdown, both := topdownOf(t, p), snapshotOf(t, p, prog).Decider
		for range 60 {
			in := inputs()[0]
			in.Request.Segments = pick(segments, r.IntN(5))
			in.Connection.PeerIP = pick(addresses, 1)[0]
			var want, got policy.Decision
			topdown.Decide(t.Context(), in, &want)
			both.Decide(t.Context(), in, &got)
			if fmt.Sprint(want) != fmt.Sprint(got) {
				t.Fatalf("segments %q, address %q: got %v, want %v\n%s", in.Request.Segments, in.Connection.PeerIP, got, want, rules.String())
			}
		}
	}
}

package opa_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

// chain applies a step to x0 over and over.
func chain(first, step string, n int) string {
	lines := []string{"x0 := " + first}
	for i := range n {
		lines = append(lines, fmt.Sprintf("x%d := ", i+1)+strings.ReplaceAll(step, "$", fmt.Sprintf("x%d", i)))
	}
	return strings.Join(lines, "\n\t")
}

// TestBuiltinsAreBounded: what would take memory without end is an error.
func TestBuiltinsAreBounded(t *testing.T) {
	const text = "input.request.path" // Nothing is known of it before.
	for name, body := range map[string]string{
		"sprintf width":     `x := sprintf("%1000000d", [input.destination.port])`,
		"sprintf precision": `x := sprintf("%.1000000d", [input.destination.port])`,
		"sprintf arguments": `x := sprintf("` + strings.Repeat("%[1]s", 4000) + `", [sprintf("%1000d", [input.destination.port])])`,
		"sprintf chain":     chain(text, `sprintf("%s%s", [$, $])`, 24),
		"concat":            `x := concat(sprintf("%1000d", [input.destination.port]), split(sprintf("%900d%900d", [1, 1]), ""))`,
		"concat chain":      chain(text, `concat("", [$, $])`, 24),
		"template":          strings.ReplaceAll(chain(text, `@"{$}{$}"`, 24), "@", "$"),
		"replace":           chain(text, `replace($, "", $)`, 5),
		"replace_n":         chain(text, `strings.replace_n({"": $}, $)`, 5),
		"regex.replace":     chain(text, `regex.replace($, "", $)`, 5),
		"numbers.range":     `x := numbers.range(input.destination.port, 100000000)`,
		"range of any size": `x := numbers.range(-9223372036854775808, 9223372036854775807)`,
		"range_step":        `x := numbers.range_step(100000000, input.destination.port, 2)`,
		"big multiply":      chain("to_number(\"123456789123456789123456789\")", "$ * $", 12),
		"big product":       chain("[to_number(\"123456789123456789123456789\")]", "[product([$[0], $[0]])]", 12),
		"array.concat":      chain("[input.request.path]", "array.concat($, $)", 20),
		"array.flatten":     chain("[input.request.path]", "array.flatten([$, $])", 20),
		"shared parts":      chain("[input.request.path]", "[$, $]", 20) + "\n\tx := json.marshal(x20)",
		"hex chain":         chain(text, "hex.encode($)", 20),
		"long token":        `x := io.jwt.decode(concat("", numbers_as_text))`,
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(t, catalogue+"-- orders.rego --\npackage services.orders\n\nnumbers_as_text := [sprintf(\"%900d\", [n]) | some n in numbers.range(1, 30)]\n\nallow if {\n\t"+body+"\n}\n")
			got := decide(t, s, request(func(in *policy.Input) { in.Destination.Port = 1 }))
			if got.Verdict != policy.Error || !strings.Contains(got.Reason, "larger than") {
				t.Errorf("got %v: %.200s", got.Verdict, got.Reason)
			}
		})
	}
}

// TestBoundedBuiltinsWork: each of them still does what it is for.
func TestBoundedBuiltinsWork(t *testing.T) {
	s := snapshot(t, catalogue+`
-- orders.rego --
package services.orders

allow if {
	p := input.destination.port
	((((p + 1) * 6) - 2) / 2) % 4 == 1
	[abs(0 - p), round(p + 0.4), ceil(p), floor(p)] == [p, p, p, p]
	[sum([p, p]), product({p, 3})] == [2, 3]
	[bits.and(p, 3), bits.or(p, 2), bits.xor(p, 3), bits.negate(p), bits.rsh(4, p)] == [1, 3, 2, -2, 2]
	format_int(p, 10) == "1"
	numbers.range(p, 3) == [1, 2, 3]
	numbers.range_step(5, p, 2) == [5, 3, 1]
	array.concat([p], [2]) == [1, 2]
	array.flatten([[p], 2]) == [1, 2]
	concat("/", ["", input.request.segments[0]]) == input.request.path
	sprintf("%5.1f%% of %[2]q, %03d", [1.25, "a", p]) == "  1.2% of \"a\", 001"
	replace(input.request.path, "/", "-") == "-reports"
	strings.replace_n({"/": "", "s": ""}, input.request.path) == "report"
	regex.replace(input.request.path, "/(.)", "$1$1") == "rreports"
	json.marshal({"p": p}) == "{\"p\":1}"
	yaml.marshal({"p": p}) == "p: 1\n"
	urlquery.encode_object({"p": input.request.path}) == "p=%2Freports"
	base64.encode(input.request.path) == "L3JlcG9ydHM="
	base64url.encode_no_pad(input.request.path) == "L3JlcG9ydHM"
	base64url.encode(input.request.path) == "L3JlcG9ydHM="
	hex.encode("a") == "61"
	urlquery.encode(input.request.path) == "%2Freports"
	glob.quote_meta("*") == "\\*"
	to_number("1") == p
	units.parse("1K") == 1000
	units.parse_bytes("1KB") == 1000
	io.jwt.verify_hs256("eyJhbGciOiJIUzI1NiJ9.e30.eHg", "k") == false
	io.jwt.decode("eyJhbGciOiJIUzI1NiJ9.e30.eHg")[1] == {}
}
`)
	if got := decide(t, s, request(func(in *policy.Input) { in.Destination.Port = 1 })); got.Verdict != policy.Allow {
		t.Errorf("got %v: %s", got.Verdict, got.Reason)
	}
}

// TestTestsEndInTime: a run that does not look at its context ends as well.
func TestTestsEndInTime(t *testing.T) {
	release, ended := make(chan struct{}), make(chan struct{})
	_, err := opa.Within(t.Context(), time.Millisecond, func(context.Context) (*opa.TestReport, error) {
		defer close(ended)
		<-release
		return &opa.TestReport{}, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(release)
	<-ended
	if _, err := opa.Within(t.Context(), time.Minute, func(context.Context) (*opa.TestReport, error) { panic("x") }); err == nil {
		t.Error("a panic passed for a report")
	}
}

// TestPatternsAreForgotten: patterns made from requests do not pile up.
func TestPatternsAreForgotten(t *testing.T) {
	s := snapshot(t, catalogue+`
-- orders.rego --
package services.orders

allow if regex.match(concat("", ["^", input.request.path, "$"]), "/1")
`)
	kept := 0
	const requests = 2000
	for i := range requests {
		decide(t, s, request(func(in *policy.Input) { in.Request.Path = fmt.Sprintf("/%d", i) }))
	}
	for i := range requests {
		if opa.Cached(s, fmt.Sprintf("^/%d$", i)) {
			kept++
		}
	}
	if kept == 0 || kept > 256 {
		t.Errorf("%d patterns of %d requests are kept", kept, requests)
	}
}

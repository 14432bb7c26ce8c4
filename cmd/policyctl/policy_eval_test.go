package main

import (
	"testing"
	"time"
)

// TestEvalDifferences holds a pair of decisions to what counts as a difference.
func TestEvalDifferences(t *testing.T) {
	at, same, later := time.Unix(1, 0), time.Unix(1, 0).UTC(), time.Unix(2, 0)
	base := func() decisionInfo {
		return decisionInfo{Verdict: "allow", Tier: "service-allow", Rules: []ruleInfo{{"a", "a.rego", 3}}, Reason: "r", Expires: &at, Engine: "topdown"}
	}
	tests := []struct {
		name   string
		change func(*decisionInfo)
		equal  bool
	}{
		{"same", func(*decisionInfo) {}, true},
		{"engine", func(d *decisionInfo) { d.Engine = "compiled" }, true},
		{"same time", func(d *decisionInfo) { d.Expires = &same }, true},
		{"verdict", func(d *decisionInfo) { d.Verdict = "deny" }, false},
		{"tier", func(d *decisionInfo) { d.Tier = "break-glass" }, false},
		{"line", func(d *decisionInfo) { d.Rules = []ruleInfo{{"a", "a.rego", 4}} }, false},
		{"reason", func(d *decisionInfo) { d.Reason = "" }, false},
		{"time", func(d *decisionInfo) { d.Expires = &later }, false},
		{"no time", func(d *decisionInfo) { d.Expires = nil }, false},
	}
	for _, tt := range tests {
		changed := base()
		tt.change(&changed)
		r := evalResult{OK: true, Decisions: []decisionInfo{base()}, Compiled: []decisionInfo{changed}}
		r.compare()
		if r.OK != tt.equal || (len(r.Differences) == 0) != tt.equal {
			t.Errorf("%s: ok %v with differences %v", tt.name, r.OK, r.Differences)
		}
	}
}

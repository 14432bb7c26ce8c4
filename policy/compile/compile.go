// Package compile turns a checked policy into a program.Program. It follows
// the rules of each tier as topdown would, with data and destination known and
// the rest of the input not, and notes typed conditions where they look at the
// input. What it cannot prove equal to topdown it leaves to topdown, and its
// Report says which rules these are and why.
package compile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// Version of the compiler. It stands in every Program and changes with
// whatever could change one.
const Version = "1"

// defaultTimeout bounds a compilation. What a policy can cost is bounded by
// steps; this is for a machine that is starved of processors.
const defaultTimeout = 30 * time.Second

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
	// Never rules cannot match: nothing of them is left for the service.
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

// Compile compiles p. What cannot be compiled is in the Report; an error is
// either that of ctx or a fault of the compiler, after which p is to be
// evaluated. The same content gives the same Program, unless the time ran out.
func Compile(ctx context.Context, p *opa.Program, cfg Config) (prog *program.Program, report *Report, err error) {
	defer func() {
		if r := recover(); r != nil {
			prog, report, err = nil, nil, fmt.Errorf("compile policy: the compiler panicked: %v", r)
		}
	}()
	return compile(ctx, p, cfg)
}

func compile(ctx context.Context, p *opa.Program, cfg Config) (*program.Program, *Report, error) {
	timeout := cfg.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	consts, err := p.Constants(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("compile policy: %w", err)
	}
	defer consts.Close()
	services := cfg.Services
	if services == nil {
		services = slices.Collect(maps.Keys(p.Catalogue().Services))
	}
	services = slices.Clone(services)
	slices.Sort(services)

	out := &program.Program{Compiler: Version, Digest: p.Digest(), Reads: p.Reads()}
	report := &Report{Compiler: Version, Services: []ServiceReport{}}
	rules := &ruleTable{}
	shared := map[*ast.Rule]*found{}
	for _, name := range slices.Compact(services) {
		if _, ok := p.Catalogue().Services[name]; !ok {
			continue // Its requests are asked about.
		}
		c := &serviceCompiler{
			p:      p,
			rules:  rules,
			shared: shared,
			x: &evaluation{
				ctx: within, p: p, consts: consts, service: name,
				relations: relations(), functions: functions(), intrinsics: intrinsics(),
				independent: map[*ast.Rule]bool{}, documents: map[string]constantDoc{}, outcomes: map[*ast.Rule]*outcomes{},
			},
			unit:   program.Unit{Service: name, HasPolicy: p.HasPolicy(name)},
			report: ServiceReport{Service: name, Rules: []RuleReport{}},
		}
		c.compile()
		out.Units = append(out.Units, c.unit)
		report.Services = append(report.Services, c.report)
	}
	out.Rules = rules.sorted(out.Units)
	if err := out.Validate(); err != nil {
		giveUp(out, report, err)
	}
	return out, report, ctx.Err()
}

// giveUp leaves everything to topdown: the program would be too large.
func giveUp(out *program.Program, report *Report, why error) {
	out.Rules = nil
	for i := range out.Units {
		u := &out.Units[i]
		*u = program.Unit{Service: u.Service, HasPolicy: u.HasPolicy, Ask: []program.Clause{{}}}
	}
	for _, s := range report.Services {
		for i := range s.Rules {
			s.Rules[i].Result, s.Rules[i].Why, s.Rules[i].Clauses = Topdown, why.Error(), 0
		}
	}
}

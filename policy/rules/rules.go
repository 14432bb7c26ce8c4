// Package rules reads YAML rules: a form of policy for those who do not want
// to write Rego.
//
// Parse reads one file and accepts nothing that it does not understand. Build
// makes of all files a Set: for each service and tier the rules with their
// conditions in a normal form, in which shorthands, patterns and defaults are
// written out. Set.Data is that form as data.writ.rules, which the root rule
// interprets (rego/writ/rules.rego); policy/compile translates it.
//
// The one thing that the normal form depends on beside the file is the trust
// domain of the service, which shorthands stand for.
package rules

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/policy"
)

// Limits of rules files.
const (
	// Bytes of one file.
	MaxFileBytes = 1 << 20
	// Rules of a policy, one counted for each service that it is for.
	MaxRules = 50_000
	// Entries in from and in to, and conditions in when.
	maxEntries = 128
	// Values of one list.
	maxValues   = 20_000
	maxServices = 4096
	maxProblems = 100
	// Bytes of an id, and of any other text.
	maxID   = 128
	maxText = 1024
)

// IsFile reports whether a file of a policy holds rules: rules.yaml, or any
// name that ends in .rules.yaml.
func IsFile(name string) bool {
	base := path.Base(name)
	return base == "rules.yaml" || strings.HasSuffix(base, ".rules.yaml")
}

// File is one rules file that has no problems.
type File struct {
	Path string
	// Services that the rules are for; empty for guardrails, which are for all.
	Services []string

	written file
	at      *strictyaml.Position
}

// Place is where the i-th of Services is written.
func (f *File) Place(i int) (line, column int) {
	p := place(f.at, f.serviceKey(i))
	return p.Line, p.Column
}

func (f *File) serviceKey(i int) string {
	if f.written.Service != "" {
		return "service"
	}
	return fmt.Sprintf("services[%d]", i)
}

// file is the YAML document. Lists are nil when they are not given.
type file struct {
	Service    string   `yaml:"service"`
	Services   []string `yaml:"services"`
	Owner      string   `yaml:"owner"`
	Rules      []rule   `yaml:"rules"`
	Guardrails []rule   `yaml:"guardrails"`
}

type rule struct {
	ID          string      `yaml:"id"`
	Description string      `yaml:"description"`
	Action      string      `yaml:"action" enum:"allow|deny"`
	Overridable bool        `yaml:"overridable"`
	From        sources     `yaml:"from"`
	To          []operation `yaml:"to"`
	When        []condition `yaml:"when"`
	Owner       string      `yaml:"owner"`
	Ticket      string      `yaml:"ticket"`
	Expires     time.Time   `yaml:"expires"`
}

// sources is a list, or the word any, which is one entry without conditions.
type sources []source

// UnmarshalText reads the word.
func (s *sources) UnmarshalText(text []byte) error {
	if string(text) != "any" {
		return fmt.Errorf("want a list of sources, or the word any, got %q", text)
	}
	*s = sources{{any: true}}
	return nil
}

type source struct {
	any bool

	SPIFFEIDs          []string            `yaml:"spiffe_ids"`
	NotSPIFFEIDs       []string            `yaml:"not_spiffe_ids"`
	TrustDomains       []string            `yaml:"trust_domains"`
	NotTrustDomains    []string            `yaml:"not_trust_domains"`
	Namespaces         []string            `yaml:"namespaces"`
	NotNamespaces      []string            `yaml:"not_namespaces"`
	ServiceAccounts    []string            `yaml:"service_accounts"`
	NotServiceAccounts []string            `yaml:"not_service_accounts"`
	Names              []string            `yaml:"names"`
	NotNames           []string            `yaml:"not_names"`
	CIDRs              []string            `yaml:"cidrs"`
	NotCIDRs           []string            `yaml:"not_cidrs"`
	ClientCIDRs        []string            `yaml:"client_cidrs"`
	NotClientCIDRs     []string            `yaml:"not_client_cidrs"`
	TokenIssuers       []string            `yaml:"token_issuers"`
	NotTokenIssuers    []string            `yaml:"not_token_issuers"`
	TokenSubjects      []string            `yaml:"token_subjects"`
	NotTokenSubjects   []string            `yaml:"not_token_subjects"`
	Claims             map[string][]string `yaml:"claims"`
	NotClaims          map[string][]string `yaml:"not_claims"`
}

type operation struct {
	Methods         []string            `yaml:"methods"`
	NotMethods      []string            `yaml:"not_methods"`
	Paths           []string            `yaml:"paths"`
	NotPaths        []string            `yaml:"not_paths"`
	Hosts           []string            `yaml:"hosts"`
	NotHosts        []string            `yaml:"not_hosts"`
	Headers         map[string][]string `yaml:"headers"`
	NotHeaders      map[string][]string `yaml:"not_headers"`
	Query           map[string][]string `yaml:"query"`
	NotQuery        map[string][]string `yaml:"not_query"`
	GRPCServices    []string            `yaml:"grpc_services"`
	NotGRPCServices []string            `yaml:"not_grpc_services"`
	GRPCMethods     []string            `yaml:"grpc_methods"`
	NotGRPCMethods  []string            `yaml:"not_grpc_methods"`
	Ports           []string            `yaml:"ports"`
	NotPorts        []string            `yaml:"not_ports"`
}

// condition is one entry of when: a field and what it is held to, a time, or
// hours of the week.
type condition struct {
	Field     string   `yaml:"field"`
	In        []string `yaml:"in"`
	NotIn     []string `yaml:"not_in"`
	Prefix    []string `yaml:"prefix"`
	NotPrefix []string `yaml:"not_prefix"`
	Suffix    []string `yaml:"suffix"`
	NotSuffix []string `yaml:"not_suffix"`
	Glob      []string `yaml:"glob"`
	NotGlob   []string `yaml:"not_glob"`
	CIDR      []string `yaml:"cidr"`
	NotCIDR   []string `yaml:"not_cidr"`
	Min       *int64   `yaml:"min"`
	Max       *int64   `yaml:"max"`
	Exists    *bool    `yaml:"exists"`

	Time   *timeRange `yaml:"time"`
	Window *window    `yaml:"window"`
}

type timeRange struct {
	After  time.Time `yaml:"after"`
	Before time.Time `yaml:"before"`
}

type window struct {
	Days []string `yaml:"days" enum:"mon|tue|wed|thu|fri|sat|sun"`
	From string   `yaml:"from"`
	To   string   `yaml:"to"`
	Zone string   `yaml:"zone"`
}

// Parse reads a rules file. Name is its path in the policy.
func Parse(name string, data []byte) (*File, []policy.Problem) {
	if len(data) > MaxFileBytes {
		return nil, []policy.Problem{{File: name, Code: policy.ProblemLimit,
			Message: fmt.Sprintf("larger than %d bytes: make several files", MaxFileBytes)}}
	}
	f := &File{Path: name}
	var err error
	if f.at, err = strictyaml.Decode(name, data, &f.written); err != nil {
		return nil, problemsOf(err)
	}
	f.Services = f.written.Services
	if f.written.Service != "" {
		f.Services = []string{f.written.Service}
	}
	c := checker{file: f}
	c.check()
	if len(c.problems) > 0 {
		slices.SortStableFunc(c.problems, func(a, b policy.Problem) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), strings.Compare(a.Message, b.Message))
		})
		return nil, c.problems
	}
	return f, nil
}

// problemsOf takes the findings of strictyaml apart.
func problemsOf(err error) []policy.Problem {
	all := []error{err}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		all = joined.Unwrap()
	}
	problems := make([]policy.Problem, 0, min(len(all), maxProblems))
	for _, one := range all[:min(len(all), maxProblems)] {
		problems = append(problems, problem(one, policy.ProblemParse))
	}
	return problems
}

func problem(err error, code string) policy.Problem {
	var at *strictyaml.Error
	if !errors.As(err, &at) {
		return policy.Problem{Code: code, Message: err.Error()}
	}
	p := policy.Problem{File: at.File, Line: at.Line, Column: at.Column, Code: code, Message: at.Message}
	if at.Key != "" {
		p.Message = at.Key + ": " + at.Message
	}
	return p
}

// place is where a key is written.
func place(at *strictyaml.Position, key string) *strictyaml.Error {
	var e *strictyaml.Error
	if !errors.As(at.Errorf(key, ""), &e) {
		return &strictyaml.Error{}
	}
	return e
}

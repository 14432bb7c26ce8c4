package template

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxDNSName  = 253
	maxDNSLabel = 63
	// maxFilled is the longest pattern with the agent's values in it, in bytes.
	maxFilled = MaxPattern + MaxVariables*MaxValue
	// agentType begins a variable of the agent. No attestor has it.
	agentType = "agent"
)

// Pattern is a SPIFFE ID or a DNS name with variables. It does not change.
type Pattern struct {
	text  string
	dns   bool
	parts []part
}

// part is fixed text or a variable.
type part struct {
	text     string
	variable string // TYPE:KEY; empty for text
	agent    bool
}

// Variable is a place in a Pattern.
type Variable struct {
	// Selector is TYPE:KEY, what the selector begins with.
	Selector string
	// Agent tells that it is of the agent's selectors.
	Agent bool
}

// String is what is between the braces.
func (v Variable) String() string {
	if v.Agent {
		return agentType + ":" + v.Selector
	}
	return v.Selector
}

// String is the pattern as it was written.
func (p *Pattern) String() string { return p.text }

// Variables are those of the pattern, in order.
func (p *Pattern) Variables() []Variable {
	var list []Variable
	for _, part := range p.parts {
		if part.variable != "" {
			list = append(list, Variable{Selector: part.variable, Agent: part.agent})
		}
	}
	return list
}

// Shape is the pattern with {} for each variable: what is in one has no place in
// a SPIFFE ID, and may look like a part of its path.
func (p *Pattern) Shape() string {
	var b strings.Builder
	for _, part := range p.parts {
		if part.variable != "" {
			b.WriteString("{}")
		} else {
			b.WriteString(part.text)
		}
	}
	return b.String()
}

// ParseSPIFFEID reads the pattern of a SPIFFE ID of a trust domain. Its first
// segment is fixed, and not one of the control plane's. It may be without
// variables: those of an agent may have been all there were.
func ParseSPIFFEID(td spiffeid.TrustDomain, text string) (*Pattern, error) {
	p, err := parse(text, false)
	if err != nil {
		return nil, err
	}
	prefix := td.IDString() + "/"
	path, ok := strings.CutPrefix(p.parts[0].text, prefix)
	if !ok {
		return nil, fmt.Errorf("want a SPIFFE ID of our trust domain, %s…", prefix)
	}
	first, _, whole := strings.Cut(path, "/")
	switch {
	case !whole:
		return nil, errors.New("the first segment of the path must be fixed text: all that the template can give lies below it")
	case first == "spire":
		return nil, errors.New("names under /spire/ belong to issuers and agents")
	case first == "writ":
		return nil, errors.New("names under /writ/ belong to the control plane")
	}
	if err := p.checkParts('/', "segment"); err != nil {
		return nil, err
	}
	// What is left of the rules for paths is the library's to know.
	if _, err := spiffeid.FromString(strings.ReplaceAll(p.Shape(), "{}", "x")); err != nil {
		return nil, err
	}
	return p, nil
}

// ParseDNSName reads the pattern of a DNS name, with or without variables. A
// wildcard is none.
func ParseDNSName(text string) (*Pattern, error) {
	p, err := parse(text, true)
	if err != nil {
		return nil, err
	}
	if err := p.checkParts('.', "label"); err != nil {
		return nil, err
	}
	if err := checkDNSName(strings.ReplaceAll(p.Shape(), "{}", "x")); err != nil {
		return nil, err
	}
	return p, nil
}

// checkDNSName accepts host names (RFC 1123 section 2.1, and '_').
func checkDNSName(name string) error {
	if len(name) > maxDNSName {
		return fmt.Errorf("the DNS name has %d bytes, at most %d are accepted", len(name), maxDNSName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxDNSLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%.100q is not a label of a DNS name", label)
		}
		for _, c := range []byte(label) {
			if !inLabel(c) && (c < 'A' || c > 'Z') {
				return fmt.Errorf("%.100q is not a label of a DNS name", label)
			}
		}
	}
	return nil
}

func parse(text string, dns bool) (*Pattern, error) {
	switch {
	case text == "":
		return nil, errors.New("missing")
	case len(text) > maxFilled:
		return nil, fmt.Errorf("it has %d bytes, at most %d are accepted", len(text), MaxPattern)
	}
	p := &Pattern{text: text, dns: dns}
	for rest := text; rest != ""; {
		n := strings.IndexAny(rest, "{}")
		if n < 0 {
			n = len(rest)
		}
		if n > 0 {
			p.parts = append(p.parts, part{text: rest[:n]})
			rest = rest[n:]
			continue
		}
		name, after, ok := strings.Cut(rest[1:], "}")
		if rest[0] == '}' || !ok {
			return nil, fmt.Errorf("%q: a brace without its other half", rest)
		}
		v, err := parseVariable(name)
		if err != nil {
			return nil, fmt.Errorf("variable {%s}: %w", name, err)
		}
		p.parts = append(p.parts, v)
		rest = after
	}
	if n := len(p.Variables()); n > MaxVariables {
		return nil, fmt.Errorf("%d variables, at most %d are accepted", n, MaxVariables)
	}
	return p, nil
}

func parseVariable(name string) (part, error) {
	v := part{variable: name}
	if rest, ok := strings.CutPrefix(name, agentType+":"); ok {
		v.variable, v.agent = rest, true
	}
	typ, key, ok := strings.Cut(v.variable, ":")
	if !ok || typ == "" || key == "" {
		return v, errors.New("want {TYPE:KEY} as in {unix:user}, or {agent:TYPE:KEY}")
	}
	if strings.HasSuffix(key, ":") {
		return v, errors.New("it ends with ':', which is there in any case")
	}
	for _, c := range []byte(v.variable) {
		if c <= ' ' || c > '~' || c == '{' {
			return v, fmt.Errorf("character %q: want printable ASCII without spaces and braces", rune(c))
		}
	}
	return v, nil
}

// checkParts finds two variables in what separators part.
func (p *Pattern) checkParts(separator byte, what string) error {
	seen := false
	for _, part := range p.parts {
		switch {
		case part.variable == "":
			seen = seen && strings.IndexByte(part.text, separator) < 0
		case seen:
			return fmt.Errorf("variable {%s}: there is another in the same %s: then different values could give the same name", part.variable, what)
		default:
			seen = true
		}
	}
	return nil
}

// of tells whether a selector has a value of the variable.
func (v *part) of(selector string) bool {
	n := len(v.variable)
	return len(selector) > n && selector[n] == ':' && selector[:n] == v.variable
}

// name is the variable as it is written.
func (v *part) name() string {
	if v.agent {
		return "{" + agentType + ":" + v.variable + "}"
	}
	return "{" + v.variable + "}"
}

// resolve puts the values of workloads in, and adds the selectors they come from.
func (p *Pattern) resolve(selectors []string, from *[]string) (string, error) {
	var b strings.Builder
	for i := range p.parts {
		part := &p.parts[i]
		if part.variable == "" {
			b.WriteString(part.text)
			continue
		}
		if part.agent {
			return "", &RefusedError{Missing, part.name(), "it is the issuer's to fill in"}
		}
		selector, err := p.choose(part, selectors)
		if err != nil {
			return "", err
		}
		if selector == "" {
			return "", ErrNoMatch
		}
		*from = append(*from, selector)
		b.WriteString(selector[len(part.variable)+1:])
	}
	return b.String(), nil
}

// forAgent puts the values of the agent in.
func (p *Pattern) forAgent(selectors []string) (*Pattern, error) {
	out := &Pattern{dns: p.dns}
	var b strings.Builder
	for _, part := range p.parts {
		switch {
		case part.agent:
			selector, err := p.choose(&part, selectors)
			if err != nil {
				return nil, err
			}
			if selector == "" {
				return nil, &RefusedError{Missing, part.name(), "the agent has no such selector"}
			}
			part = fixed(selector[len(part.variable)+1:])
			b.WriteString(part.text)
		case part.variable != "":
			b.WriteString(part.name())
		default:
			b.WriteString(part.text)
		}
		out.parts = append(out.parts, part)
	}
	out.text = b.String()
	return out, nil
}

func fixed(text string) part { return part{text: text} }

// choose finds the one selector of a variable, "" if there is none, and checks its
// value.
func (p *Pattern) choose(v *part, selectors []string) (string, error) {
	found := ""
	for _, s := range selectors {
		if !v.of(s) || s == found {
			continue
		}
		if found != "" {
			return "", &RefusedError{Ambiguous, v.name(), fmt.Sprintf("there are %.200q and %.200q", found, s)}
		}
		found = s
	}
	if found == "" {
		return "", nil
	}
	value := found[len(v.variable)+1:]
	longest := MaxValue
	if p.dns {
		longest = maxDNSLabel
	}
	switch {
	case value == "":
		return "", &RefusedError{Empty, v.name(), fmt.Sprintf("%q", found)}
	case len(value) > longest:
		return "", &RefusedError{TooLong, v.name(), fmt.Sprintf("%d bytes, at most %d are accepted", len(value), longest)}
	case value == "." || value == "..":
		return "", &RefusedError{Malformed, v.name(), fmt.Sprintf("%q is no part of a path", value)}
	}
	for _, c := range []byte(value) {
		if !p.accepts(c) {
			return "", &RefusedError{Malformed, v.name(), fmt.Sprintf("%.200q has the character %q", value, rune(c))}
		}
	}
	return found, nil
}

// accepts are the characters of a path segment (SPIFFE ID, section 2.2), and of a
// label of a DNS name in its one spelling.
func (p *Pattern) accepts(c byte) bool {
	return inLabel(c) || !p.dns && (c >= 'A' && c <= 'Z' || c == '.')
}

func inLabel(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

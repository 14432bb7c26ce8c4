package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/util"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/internal/strictjson"
	"github.com/writ-dev/writ/policy/rules"
)

// MaxDataDepth bounds the nesting of data documents.
const MaxDataDepth = 64

// maxProblems is enough for anybody to mend at once; finding the place of one
// reads the file again.
const maxProblems = 100

// Data merges the data files: one in directory a/b is data.a.b, as in an OPA
// bundle. Two files may not give the same value. It also checks who may define
// what: data.services and data.guardrails are made of rules, data.system is
// OPA's, and of data.writ only services, break_glass and outside are a
// publisher's. The YAML rules of the services in data.writ.services become
// data.writ.rules.
func (c Content) Data() (map[string]any, []policy.Problem) {
	m := merger{root: map[string]any{}, origin: map[string]string{}}
	for _, f := range c {
		if f.IsData() {
			m.file(f)
		}
	}
	set, problems := c.Rules(m.root)
	m.problems = append(m.problems, problems...)
	if len(m.problems) == 0 {
		if written := set.Data(); written != nil {
			writ, ok := m.root["writ"].(map[string]any)
			if !ok {
				writ = map[string]any{}
				m.root["writ"] = writ
			}
			writ["rules"] = written
		}
	}
	return m.root, m.problems
}

// Rules are the YAML rules for the services in data, which is what Data
// returned.
func (c Content) Rules(data map[string]any) (*rules.Set, []policy.Problem) {
	var files []*rules.File
	var problems []policy.Problem
	for _, f := range c {
		if !f.IsRules() {
			continue
		}
		parsed, wrong := rules.Parse(f.Path, f.Content)
		if problems = append(problems, wrong...); parsed != nil {
			files = append(files, parsed)
		}
	}
	if len(problems) > 0 {
		return nil, problems[:min(len(problems), maxProblems)]
	}
	return rules.Build(files, trustDomains(data))
}

// trustDomains of the SPIFFE IDs of each service. What is no SPIFFE ID is for
// Catalogue to report.
func trustDomains(data map[string]any) map[string][]string {
	writ, _ := data["writ"].(map[string]any)
	services, _ := writ["services"].(map[string]any)
	domains := make(map[string][]string, len(services))
	for name, value := range services {
		entry, _ := value.(map[string]any)
		ids, _ := entry["spiffe_ids"].([]any)
		domains[name] = []string{}
		for _, item := range ids {
			text, _ := item.(string)
			if id, err := spiffeid.FromString(text); err == nil {
				domains[name] = append(domains[name], id.TrustDomain().Name())
			}
		}
	}
	return domains
}

type merger struct {
	root     map[string]any
	origin   map[string]string // file of each merged path
	problems []policy.Problem
}

func (m *merger) fail(f File, at []string, code, format string, args ...any) {
	if len(m.problems) == maxProblems {
		return
	}
	p := policy.Problem{File: f.Path, Code: code, Message: fmt.Sprintf(format, args...)}
	p.Line, p.Column = locate(f.Content, at)
	m.problems = append(m.problems, p)
}

func (m *merger) file(f File) {
	value, problem := parseData(f)
	if problem != nil {
		m.problems = append(m.problems, *problem)
		return
	}
	object, ok := value.(map[string]any)
	if !ok {
		m.fail(f, nil, policy.ProblemParse, "want an object at the top")
		return
	}
	var prefix []string
	if dir := path.Dir(f.Path); dir != "." {
		prefix = strings.Split(dir, "/")
	}
	if d := len(prefix) + depth(object); d > MaxDataDepth { // As deep as it is in a slice.
		m.fail(f, nil, policy.ProblemLimit, "nested deeper than %d, its directories counted", MaxDataDepth)
		return
	}
	for i := len(prefix) - 1; i >= 0; i-- {
		object = map[string]any{prefix[i]: object}
	}
	if !m.mayDefine(f, len(prefix), object) {
		return
	}
	m.merge(f, m.root, object, nil, len(prefix))
}

// mayDefine checks the roots. skip is how many leading names are directories
// and not in the file.
func (m *merger) mayDefine(f File, skip int, object map[string]any) bool {
	ok := true
	refuse := func(at []string, why string) {
		m.fail(f, at[min(skip, len(at)):], policy.ProblemCatalogue, "data.%s: %s", strings.Join(at, "."), why)
		ok = false
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		switch name {
		case "services", "guardrails":
			refuse([]string{name}, "is made of rules; data may not define it (the catalogue is data.writ.services)")
		case "system":
			refuse([]string{name}, "is reserved")
		case "writ":
			writ, isObject := object[name].(map[string]any)
			if !isObject {
				refuse([]string{name}, "want an object")
			}
			for _, sub := range slices.Sorted(maps.Keys(writ)) {
				if sub != "services" && sub != "break_glass" && sub != "outside" {
					if sub == "rules" {
						refuse([]string{name, sub}, "is made of rules files, such as orders.rules.yaml; data may not define it")
						continue
					}
					refuse([]string{name, sub}, "is reserved; only services, break_glass and outside are data of a publisher")
				}
			}
		}
	}
	return ok
}

func (m *merger) merge(f File, into, from map[string]any, at []string, skip int) {
	for _, name := range slices.Sorted(maps.Keys(from)) {
		here := append(slices.Clone(at), name)
		have, exists := into[name]
		haveObject, isObject := have.(map[string]any)
		fromObject, fromIsObject := from[name].(map[string]any)
		switch {
		case !exists:
			into[name] = from[name]
			m.origin[strings.Join(here, "\x00")] = f.Path
		case isObject && fromIsObject:
			m.merge(f, haveObject, fromObject, here, skip)
		default:
			m.fail(f, here[min(skip, len(here)):], policy.ProblemParse, "data.%s is defined in %s, too",
				strings.Join(here, "."), m.definedIn(here))
		}
	}
}

// definedIn is the file that gave the value at the path, or a value around it.
func (m *merger) definedIn(at []string) string {
	for n := len(at); n > 0; n-- {
		if file, ok := m.origin[strings.Join(at[:n], "\x00")]; ok {
			return file
		}
	}
	return "another data file"
}

// checkPlain refuses anchors and aliases in a file that OPA reads as YAML,
// which it does with all that is not JSON, whatever it is called. A text with
// one anchor and thousands of aliases takes gigabytes as soon as it is decoded,
// so this comes before anything else reads the file, its signature included.
func checkPlain(f File) *policy.Problem {
	if !f.IsData() && f.Path != manifestFile || json.Valid(f.Content) {
		return nil
	}
	problem := &policy.Problem{File: f.Path, Code: policy.ProblemParse}
	var doc yaml.Node // Of nodes, an alias only points to its anchor.
	err := yaml.Unmarshal(f.Content, &doc)
	if err != nil && path.Ext(f.Path) == ".json" {
		// The reason is wanted in terms of JSON.
		_, jsonErr := strictjson.Decode(f.Content, MaxDataDepth)
		var where *strictjson.Error
		if errors.As(jsonErr, &where) {
			problem.Line, problem.Column, problem.Message = where.Line, where.Column, where.Message
			return problem
		}
	}
	if err != nil {
		problem.Line, problem.Message = yamlError(err)
		return problem
	}
	if n := anchored(&doc); n != nil {
		problem.Line, problem.Column = n.Line, n.Column
		problem.Message = "anchors and aliases are not supported: write the value out"
		return problem
	}
	return nil
}

// anchored is the first anchor or alias, or nil.
func anchored(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return n
	}
	for _, item := range n.Content {
		if found := anchored(item); found != nil {
			return found
		}
	}
	return nil
}

// parseData reads a data file as the signature's hash does, so that what is
// signed is what is used, and refuses what that reading is lax about.
func parseData(f File) (any, *policy.Problem) {
	if problem := checkPlain(f); problem != nil {
		return nil, problem
	}
	fail := func(line, column int, message string) *policy.Problem {
		return &policy.Problem{File: f.Path, Line: line, Column: column, Code: policy.ProblemParse, Message: message}
	}
	if path.Ext(f.Path) == ".json" {
		_, err := strictjson.Decode(f.Content, MaxDataDepth)
		var where *strictjson.Error
		if errors.As(err, &where) {
			return nil, fail(where.Line, where.Column, where.Message)
		}
	} else {
		dec := yaml.NewDecoder(bytes.NewReader(f.Content))
		var v, second any
		if err := dec.Decode(&v); err != nil { // Finds duplicate keys.
			line, message := yamlError(err)
			return nil, fail(line, 0, message)
		}
		if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
			return nil, fail(0, 0, "a second document: put everything into one")
		}
	}
	var value any
	if err := util.Unmarshal(f.Content, &value); err != nil {
		return nil, fail(0, 0, err.Error())
	}
	return value, nil
}

func yamlError(err error) (int, string) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	var typed *yaml.TypeError
	if errors.As(err, &typed) && len(typed.Errors) > 0 {
		text = typed.Errors[0]
	}
	var line int
	if _, scanErr := fmt.Sscanf(text, "line %d: ", &line); scanErr == nil {
		_, text, _ = strings.Cut(text, ": ")
	}
	return line, text
}

func depth(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, item := range v {
			deepest = max(deepest, depth(item))
		}
	case []any:
		for _, item := range v {
			deepest = max(deepest, depth(item))
		}
	default:
		return 0
	}
	return deepest + 1
}

// locate finds the line and column of the key at the path, or of its nearest
// enclosing key. JSON is YAML enough for this.
func locate(text []byte, at []string) (line, column int) {
	var doc yaml.Node
	if len(at) == 0 || yaml.Unmarshal(text, &doc) != nil || len(doc.Content) == 0 {
		return 1, 1
	}
	line, column = 1, 1
	node := doc.Content[0]
	for _, name := range at {
		next := (*yaml.Node)(nil)
		for i := 0; node.Kind == yaml.MappingNode && i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == name {
				line, column, next = node.Content[i].Line, node.Content[i].Column, node.Content[i+1]
			}
		}
		if next == nil {
			break
		}
		node = next
	}
	return line, column
}

// Locate finds which data file defines the path, and where.
func (c Content) Locate(at ...string) (file string, line, column int) {
	for _, f := range c {
		if !f.IsData() {
			continue
		}
		rest := at
		if dir := path.Dir(f.Path); dir != "." {
			prefix := strings.Split(dir, "/")
			if len(prefix) > len(at) || !slices.Equal(prefix, at[:len(prefix)]) {
				continue
			}
			rest = at[len(prefix):]
		}
		if value, problem := parseData(f); problem == nil && has(value, rest) {
			line, column = locate(f.Content, rest)
			return f.Path, line, column
		}
	}
	return "", 0, 0
}

func has(value any, at []string) bool {
	for _, name := range at {
		object, ok := value.(map[string]any)
		if !ok {
			return false
		}
		if value, ok = object[name]; !ok {
			return false
		}
	}
	return true
}

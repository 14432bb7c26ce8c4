package compile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/program"
)

// A value is what a term comes to when the input is not known: a constant, a
// field of the input, or something made of these. Each stands for a value that
// is there; that it is there is a condition of the state it came with.
type value any

type (
	// constant is a value without an unknown in it.
	constant struct{ v ast.Value }

	// text is a text of the input. elem and token tell of which element of a
	// list and of which token; 0 is none.
	text struct {
		f           *field
		elem, token int
	}

	// number is a number of the input.
	number struct{ f *field }

	// node is an object of the input, by its path.
	node struct{ path string }

	// list is a list of texts of the input.
	list struct {
		base, count program.Base
		name        string
		token       int
	}

	// tokens is input.tokens; token one of it.
	tokens struct{}
	token  struct{ id int }

	// claim is something below the claims of a token, of any type.
	claim struct {
		token int
		path  string
	}

	// array, object and set have parts that are not constant.
	array  struct{ items []value }
	object struct {
		keys  []ast.Value
		items []value
	}
	set struct{ items []value }

	// split is split(of, separator).
	split struct {
		of        text
		separator string
	}

	// ruleSet is a partial set: its members are what its rules give.
	ruleSet struct{ rules []*ast.Rule }

	// comprehension is a set or array of what its body gives, where that
	// depends on the input.
	comprehension struct {
		env  *binding
		head *ast.Term
		body ast.Body
	}

	// size is count(of), of a ruleSet or comprehension.
	size struct{ of value }

	// doc is a part of data with rules in or below it.
	doc struct {
		tree *ast.TreeNode
		base ast.Value
		ref  ast.Ref
	}

	// clockText is input.time.
	clockText struct{}

	// unknown is a value of which nothing can be said.
	unknown struct{ what string }
)

// field is a program.Field with its key: equal keys are equal fields.
type field struct {
	program.Field
	key string
}

func newField(f program.Field) *field {
	var b strings.Builder
	b.WriteString(strconv.Itoa(int(f.Base)))
	b.WriteByte('.')
	b.WriteString(strconv.Itoa(int(f.Index)))
	b.WriteByte('.')
	b.WriteString(strconv.Quote(f.Name))
	for _, s := range f.Via {
		b.WriteByte('.')
		b.WriteString(strconv.Itoa(int(s.Kind)))
		b.WriteString(strconv.Quote(s.Text))
		b.WriteString(strconv.Itoa(int(s.Index)))
	}
	return &field{f, b.String()}
}

// via is t with one more step.
func (t text) via(s program.Step) text {
	f := t.f.Field
	f.Via = append(append([]program.Step(nil), f.Via...), s)
	return text{newField(f), t.elem, t.token}
}

// always reports whether the field has a value in every input.
func (f *field) always() bool {
	if f.mayMiss() {
		return false
	}
	switch f.Base {
	case program.Direction, program.Layer,
		program.SourceID, program.SourceTrustDomain, program.SourcePath, program.SourceAuthn,
		program.DestinationService, program.DestinationID, program.DestinationPort,
		program.PeerIP, program.ClientIP, program.TLSVersion, program.SNI, program.ALPN,
		program.TokenStatus, program.Time:
		return true
	}
	return false
}

// mayMiss reports whether a step may find no value.
func (f *field) mayMiss() bool {
	return slices.ContainsFunc(f.Via, func(s program.Step) bool { return s.Kind == program.SplitElement && s.Index >= 0 })
}

// many reports whether the field may have several values.
func (f *field) many() bool {
	return f.Index < 0 || slices.ContainsFunc(f.Via, func(s program.Step) bool { return s.Index < 0 })
}

// ofRequest reports whether only a request has the field.
func (f *field) ofRequest() bool {
	return f.Base >= program.Protocol && f.Base <= program.ContentLength
}

// member is what a field of an object of the input is.
type member struct {
	node  string // of an object
	field *field
	number,
	always bool
	is value
}

func textMember(b program.Base) member { return member{field: newField(program.Field{Base: b})} }
func numberMember(b program.Base) member {
	return member{field: newField(program.Field{Base: b}), number: true}
}

// inputMembers is the input's schema, rego/schemas/input.json.
var inputMembers = map[string]map[string]member{
	"input": {
		"version":      {is: constant{ast.Number("1")}},
		"direction":    textMember(program.Direction),
		"layer":        textMember(program.Layer),
		"source":       {node: "source", always: true},
		"destination":  {node: "destination", always: true},
		"request":      {node: "request"},
		"tokens":       {is: tokens{}},
		"token_status": textMember(program.TokenStatus),
		"connection":   {node: "connection", always: true},
		"time":         {is: clockText{}},
	},
	"source": {
		"id":           textMember(program.SourceID),
		"trust_domain": textMember(program.SourceTrustDomain),
		"path":         textMember(program.SourcePath),
		"authn":        textMember(program.SourceAuthn),
	},
	"destination": {
		"service": textMember(program.DestinationService),
		"id":      textMember(program.DestinationID),
		"port":    numberMember(program.DestinationPort),
	},
	"request": {
		"protocol":       textMember(program.Protocol),
		"method":         textMember(program.Method),
		"host":           textMember(program.Host),
		"path":           textMember(program.Path),
		"segments":       {is: list{base: program.Segment, count: program.SegmentCount}},
		"query":          {node: "query"},
		"headers":        {node: "headers"},
		"grpc":           {node: "grpc"},
		"content_length": numberMember(program.ContentLength),
	},
	"grpc": {
		"service": textMember(program.GRPCService),
		"method":  textMember(program.GRPCMethod),
	},
	"connection": {
		"peer_ip":     textMember(program.PeerIP),
		"client_ip":   textMember(program.ClientIP),
		"tls_version": textMember(program.TLSVersion),
		"sni":         textMember(program.SNI),
		"alpn":        textMember(program.ALPN),
	},
}

// member is the part of a node with that name, and the condition under which
// it is there. ok is false when it never is.
func (n node) member(name string) (v value, present *cond, ok bool) {
	switch n.path {
	case "headers":
		l := list{base: program.Header, count: program.HeaderCount, name: name}
		return l, l.present(), true
	case "query":
		l := list{base: program.Query, count: program.QueryCount, name: name}
		return l, l.present(), true
	}
	m, ok := inputMembers[n.path][name]
	switch {
	case !ok:
		return nil, nil, false
	case m.node != "":
		return node{m.node}, node{m.node}.present(), true
	case m.is != nil:
		if l, ok := m.is.(list); ok {
			return l, l.present(), true
		}
		return m.is, nil, true
	case m.number:
		return number{m.field}, presence(m.field, 0, 0), true
	}
	return text{f: m.field}, presence(m.field, 0, 0), true
}

var (
	layerField    = newField(program.Field{Base: program.Layer})
	protocolField = newField(program.Field{Base: program.Protocol})
)

// present is the condition under which the node is there, nil for always.
func (n node) present() *cond {
	switch n.path {
	case "request", "headers", "query":
		return equalsAny(layerField, 0, 0, policy.LayerRequest)
	case "grpc":
		return equalsAny(protocolField, 0, 0, policy.GRPC)
	}
	return nil
}

// present is the condition under which the list is there.
func (l list) present() *cond {
	if l.token != 0 {
		return nil
	}
	return presence(l.counter(), 0, 0)
}

func (l list) counter() *field { return newField(program.Field{Base: l.count, Name: l.name}) }

// at is one element by its index.
func (l list) at(index int32) text {
	return text{newField(program.Field{Base: l.base, Name: l.name, Index: index}), 0, l.token}
}

// any is one element of a list, whichever.
func (x *evaluation) any(l list) text {
	return text{newField(program.Field{Base: l.base, Name: l.name, Index: -1}), x.newID(), l.token}
}

// anyPart is one part of a text, whichever.
func (x *evaluation) anyPart(p split) (text, bool) {
	if p.of.elem != 0 || p.separator == "" {
		return text{}, false
	}
	part := p.of.via(program.Step{Kind: program.SplitElement, Text: p.separator, Index: -1})
	part.elem = x.newID()
	return part, true
}

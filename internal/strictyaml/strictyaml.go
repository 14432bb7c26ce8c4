// Package strictyaml decodes a YAML document into a struct and accepts nothing
// it does not understand. Every error names file, line, column and key, and
// for a word that is nearly right, the right one.
//
// Fields are matched by their `yaml:"name"` tag; a field without one is not
// part of the file. Beside the kinds of Go it knows time.Duration ("30s"),
// time.Time (RFC 3339 or a date) and encoding.TextUnmarshaler; a slice that is
// one may be a list or a word. A field tagged
// `enum:"a|b"` takes only those words. Missing keys leave the field as it was,
// so defaults are set before decoding.
package strictyaml

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/writ-dev/writ/internal/nearmiss"
)

// Error is one finding.
type Error struct {
	File         string
	Line, Column int
	// Key is the dotted path to the value, empty at the top.
	Key     string
	Message string
}

func (e *Error) Error() string {
	at := fmt.Sprintf("%s:%d:%d: ", e.File, e.Line, e.Column)
	if e.Key != "" {
		at += e.Key + ": "
	}
	return at + e.Message
}

// Position finds where a key of a decoded document stands, for errors that
// only a later check can find.
type Position struct {
	file  string
	lines map[string][2]int
}

// Errorf reports message at the key (dotted, list indices in brackets:
// services[2].port), or at its nearest enclosing key.
func (p *Position) Errorf(key, format string, args ...any) error {
	e := &Error{File: p.file, Line: 1, Column: 1, Key: key, Message: fmt.Sprintf(format, args...)}
	for k := key; ; {
		if at, ok := p.lines[k]; ok {
			e.Line, e.Column = at[0], at[1]
			return e
		}
		i := strings.LastIndexAny(k, ".[")
		if i < 0 {
			return e
		}
		k = k[:i]
	}
}

// Load decodes the file at path into the struct that into points to.
func Load(path string, into any) (*Position, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Decode(path, data, into)
}

// Decode decodes data, called name in errors, into the struct that into points
// to. It reports every error it finds, joined.
func Decode(name string, data []byte, into any) (*Position, error) {
	d := &decoder{pos: &Position{file: name, lines: map[string][2]int{}}}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return d.pos, nil
	case err != nil:
		return d.pos, syntaxError(name, err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		if err != nil {
			return d.pos, syntaxError(name, err)
		}
		return d.pos, &Error{File: name, Line: second.Line, Column: 1, Message: "a second document: put everything into one"}
	}
	d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "", "")
	return d.pos, errors.Join(d.errs...)
}

func syntaxError(name string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if n, after, ok := strings.Cut(rest, ": "); ok {
			if v, err := strconv.Atoi(n); err == nil {
				line, text = v, after
			}
		}
	}
	return &Error{File: name, Line: line, Column: 1, Message: text}
}

type decoder struct {
	pos  *Position
	errs []error
}

func (d *decoder) fail(n *yaml.Node, key, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.pos.file, Line: n.Line, Column: n.Column, Key: key, Message: fmt.Sprintf(format, args...)})
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	timeType     = reflect.TypeFor[time.Time]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (d *decoder) value(n *yaml.Node, v reflect.Value, key, enum string) {
	d.pos.lines[key] = [2]int{n.Line, n.Column}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.fail(n, key, "anchors and aliases are not supported: write the value out")
		return
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), key, enum)
		v.Set(p)
		return
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fail(n, key, "tags such as %s are not supported: write the value alone", n.Tag)
		return
	}
	if n.Tag == "!!null" {
		d.fail(n, key, "empty: give a value or leave the key out")
		return
	}
	switch {
	case v.Type() == durationType, v.Type() == timeType:
		d.scalar(n, v, key, enum)
		return
	case v.CanAddr() && v.Addr().Type().Implements(textType) && (n.Kind != yaml.SequenceNode || v.Kind() != reflect.Slice):
		d.scalar(n, v, key, enum)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(n, v, key)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fail(n, key, "want a list, got %s", describe(n))
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			d.value(item, s.Index(i), fmt.Sprintf("%s[%d]", key, i), enum)
		}
		v.Set(s)
	case reflect.Map:
		d.mapping(n, v, key, enum)
	default:
		d.scalar(n, v, key, enum)
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, key, enum string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, key, "want a mapping, got %s", describe(n))
		return
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	for i := 0; i < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if !d.plainKey(k, key) {
			continue
		}
		kv := reflect.ValueOf(k.Value).Convert(v.Type().Key())
		if m.MapIndex(kv).IsValid() {
			d.fail(k, join(key, k.Value), "given twice")
			continue
		}
		ev := reflect.New(v.Type().Elem()).Elem()
		d.value(val, ev, join(key, k.Value), enum)
		m.SetMapIndex(kv, ev)
	}
	v.Set(m)
}

func (d *decoder) object(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, key, "want a mapping, got %s", describe(n))
		return
	}
	fields := map[string]reflect.StructField{}
	var names []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			fields[name] = f
			names = append(names, name)
		}
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if !d.plainKey(k, key) {
			continue
		}
		f, ok := fields[k.Value]
		switch {
		case !ok:
			d.fail(k, join(key, k.Value), "unknown key%s", nearmiss.Hint(k.Value, names))
		case seen[k.Value]:
			d.fail(k, join(key, k.Value), "given twice")
		default:
			seen[k.Value] = true
			d.value(val, v.FieldByIndex(f.Index), join(key, k.Value), f.Tag.Get("enum"))
		}
	}
}

// plainKey refuses keys that are not words: lists, mappings, aliases.
func (d *decoder) plainKey(k *yaml.Node, key string) bool {
	if k.Kind != yaml.ScalarNode || k.Anchor != "" {
		d.fail(k, key, "a key must be a plain word")
		return false
	}
	return true
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, key, enum string) {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, key, "want %s, got %s", want(v.Type()), describe(n))
		return
	}
	if enum != "" {
		words := strings.Split(enum, "|")
		if !slices.Contains(words, n.Value) {
			hint := nearmiss.Hint(n.Value, words)
			if strings.HasPrefix(hint, ";") {
				hint = "" // it would list them again
			}
			d.fail(n, key, "%q is not one of %s%s", n.Value, strings.Join(words, ", "), hint)
			return
		}
	}
	var err error
	switch {
	case v.Type() == durationType:
		var dur time.Duration
		if dur, err = time.ParseDuration(n.Value); err == nil {
			v.SetInt(int64(dur))
		}
	case v.Type() == timeType:
		var t time.Time
		if t, err = time.Parse(time.RFC3339, n.Value); err != nil {
			t, err = time.Parse(time.DateOnly, n.Value)
		}
		if err == nil {
			v.Set(reflect.ValueOf(t.UTC()))
		}
	case v.Addr().Type().Implements(textType):
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
			d.fail(n, key, "%v", err)
		}
		return
	case v.Kind() == reflect.String:
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool:
		if n.Tag != "!!bool" {
			err = errors.New("not a boolean")
			break
		}
		var b bool
		if b, err = strconv.ParseBool(n.Value); err == nil {
			v.SetBool(b)
		}
	case v.CanInt():
		var i int64
		if i, err = strconv.ParseInt(n.Value, 10, v.Type().Bits()); err == nil {
			v.SetInt(i)
		}
	case v.CanUint():
		var u uint64
		if u, err = strconv.ParseUint(n.Value, 10, v.Type().Bits()); err == nil {
			v.SetUint(u)
		}
	case v.CanFloat():
		var f float64
		if f, err = strconv.ParseFloat(n.Value, v.Type().Bits()); err == nil {
			if math.IsNaN(f) || math.IsInf(f, 0) || strings.ContainsAny(n.Value, "xX") {
				err = errors.New("not a decimal number")
			}
			v.SetFloat(f)
		}
	default:
		err = fmt.Errorf("cannot hold a %s", v.Type())
	}
	if err != nil {
		d.fail(n, key, "want %s, got %q", want(v.Type()), n.Value)
	}
}

func want(t reflect.Type) string {
	switch {
	case t == durationType:
		return "a duration such as 30s or 1h"
	case t == timeType:
		return "a time such as 2030-01-31 or 2030-01-31T12:00:00Z"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.String:
		return "a text"
	case t.Kind() == reflect.Float64:
		return "a number such as 0.5"
	}
	return fmt.Sprintf("a whole number that fits %d bits", t.Bits())
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return strconv.Quote(n.Value)
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

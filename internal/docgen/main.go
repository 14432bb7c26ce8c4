// Command docgen writes docs/reference/configuration.md from the structs that
// the programs decode their configuration into, so that the page cannot drift
// from the code. A field's comment is its description; the struct returned by
// Default gives the default. It writes docs/reference/rego-library.md from the
// comments of the library.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"reflect"
	"strings"
	"time"
)

// section is one file that is documented: a title, the package directory, the struct at
// the root of the file, and its defaults. more are the directories of other
// packages that parts of the file are from.
type section struct {
	title, intro, dir, root string
	defaults                any
	more                    []string
}

func main() {
	err := run("docs/reference/configuration.md")
	if err == nil {
		err = library("docs/reference/rego-library.md")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	var out bytes.Buffer
	out.WriteString("# Configuration reference\n\n<!-- Made by `make generate`; edit the comments of the structs instead. -->\n\n" +
		"Every file is strict YAML: an unknown key or a wrong value is an error that names file, line, column and key. " +
		"Durations are written `30s`, `5m`, `1h`.\n")
	for _, s := range sections() {
		if err := s.write(&out); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	if err := os.MkdirAll("docs/reference", 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}

// structs are the struct declarations of a package, by name; those of other
// packages by package and name, as in sds.Names.
type structs map[string]*ast.StructType

func parse(dir string) (structs, error) {
	fset := token.NewFileSet()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := structs{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, dir+"/"+e.Name(), nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if st, ok := spec.Type.(*ast.StructType); ok {
					found[spec.Name.Name] = st
				}
			}
			return true
		})
	}
	return found, nil
}

func (s section) write(out *bytes.Buffer) error {
	decls, err := parse(s.dir)
	if err != nil {
		return err
	}
	for _, dir := range s.more {
		others, err := parse(dir)
		if err != nil {
			return err
		}
		for name, decl := range others {
			decls[path.Base(dir)+"."+name] = decl
		}
	}
	if decls[s.root] == nil {
		return fmt.Errorf("no struct %s in %s", s.root, s.dir)
	}
	fmt.Fprintf(out, "\n## %s\n\n%s\n\n| key | type | default | meaning |\n|---|---|---|---|\n", s.title, s.intro)
	return decls.rows(out, s.root, "", reflect.ValueOf(s.defaults))
}

func (d structs) rows(out *bytes.Buffer, name, prefix string, defaults reflect.Value) error {
	for _, f := range d[name].Fields.List {
		if f.Tag == nil {
			continue
		}
		tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
		key, _, _ := strings.Cut(tag.Get("yaml"), ",")
		if key == "" || key == "-" {
			continue
		}
		for _, ident := range f.Names {
			var def reflect.Value
			if defaults.IsValid() && defaults.Kind() == reflect.Struct {
				def = defaults.FieldByName(ident.Name)
			}
			if err := d.row(out, f, prefix+key, tag, def); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d structs) row(out *bytes.Buffer, f *ast.Field, key string, tag reflect.StructTag, def reflect.Value) error {
	kind, nested, suffix := describe(f.Type)
	if _, ok := d[nested]; ok && strings.Contains(nested, ".") {
		kind = "section"
	}
	if enum := tag.Get("enum"); enum != "" {
		kind = strings.ReplaceAll(enum, "|", " \\| ")
	}
	comment := f.Doc
	if comment == nil {
		return fmt.Errorf("%s has no comment", key)
	}
	// Markdown takes <name> for a tag, and | for the end of the cell.
	text := strings.NewReplacer("|", `\|`, "<", `\<`).Replace(strings.Join(strings.Fields(comment.Text()), " "))
	fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", key+suffix, kind, defaultText(def), text)
	if _, ok := d[nested]; !ok {
		return nil
	}
	if def.IsValid() && def.Kind() == reflect.Pointer {
		def = def.Elem()
	}
	return d.rows(out, nested, key+suffix+".", def)
}

// describe gives the readable type, the name of a nested struct if there is
// one, and what the key gets appended.
func describe(e ast.Expr) (kind, nested, suffix string) {
	switch t := e.(type) {
	case *ast.StarExpr:
		return describe(t.X)
	case *ast.ArrayType:
		kind, nested, _ = describe(t.Elt)
		return "list of " + kind, nested, "[]"
	case *ast.MapType:
		kind, nested, _ = describe(t.Value)
		return "mapping to " + kind, nested, ".<name>"
	case *ast.SelectorExpr:
		if t.Sel.Name == "Duration" {
			return "duration", "", ""
		}
		return strings.ToLower(t.Sel.Name), t.X.(*ast.Ident).Name + "." + t.Sel.Name, ""
	case *ast.Ident:
		switch t.Name {
		case "string":
			return "text", "", ""
		case "bool":
			return "true or false", "", ""
		case "int", "int64", "uint64", "uint16", "uint32", "float64":
			return "number", "", ""
		}
		return "section", t.Name, ""
	}
	return "value", "", ""
}

func defaultText(v reflect.Value) string {
	if !v.IsValid() || v.IsZero() || v.Kind() == reflect.Pointer || v.Kind() == reflect.Struct || v.Kind() == reflect.Slice {
		return ""
	}
	text := fmt.Sprint(v.Interface())
	if v.Type() == reflect.TypeFor[time.Duration]() {
		// 1h0m0s reads better as 1h, 5m0s as 5m; 10s stays.
		text = strings.Replace(text, "m0s", "m", 1)
		text = strings.Replace(text, "h0m", "h", 1)
	}
	return "`" + text + "`"
}

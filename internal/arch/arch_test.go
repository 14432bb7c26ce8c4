// Package arch holds the structure of the house in tests: who may import
// whom, and that each package says what it is for.
package arch

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/writ-dev/writ/"

// rooms in the order in which imports may run: a room imports itself and those
// before it.
var rooms = []string{"identity", "policy", "audit", "pep", "proxy"}

type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

func load(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,GoFiles,Imports,Deps", module+"...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		pkgs = append(pkgs, p)
	}
}

func top(path string) string {
	name, _, _ := strings.Cut(path, "/")
	return name
}

func level(name string) int {
	for i, r := range rooms {
		if r == name {
			return i
		}
	}
	return -1
}

func TestImportsRunOneWay(t *testing.T) {
	for _, p := range load(t) {
		from := top(p.ImportPath)
		for _, imp := range p.Imports {
			path, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to := top(path)
			switch {
			case to == "cmd" || to == "test" && from != "test":
				t.Errorf("%s imports %s: nothing imports a program", p.ImportPath, path)
			case level(from) >= 0 && level(to) > level(from):
				t.Errorf("%s imports %s: imports run %s", p.ImportPath, path, strings.Join(rooms, " ← "))
			case from == "internal" && (level(to) >= 0 || to == "rego") && !reachesRooms[p.ImportPath]:
				t.Errorf("%s imports %s: internal packages stand below every room", p.ImportPath, path)
			case from == "rego" && to != "rego":
				t.Errorf("%s imports %s: rego holds sources only", p.ImportPath, path)
			}
		}
	}
}

// reachesRooms are the internal packages that stand beside the programs.
var reachesRooms = map[string]bool{
	"internal/docgen": true, // reads the configuration structs and the Rego library
}

// forbidden are imports that would undo a decision, each with its reason.
var forbidden = []struct{ inside, except, imp, reason string }{
	{"", "policy/opa", "github.com/open-policy-agent/opa/v1/rego", "policy/opa is the only importer of OPA's evaluator"},
	{"identity", "", "github.com/open-policy-agent/opa", "identity does not decide"},
	{"policy", "policy/opa,policy/compile,policy/bundle,policy/server,policy/follow,policy/lint", "github.com/open-policy-agent/opa", "the contract of a decision knows no engine; lint reads syntax trees only"},
	{"policy/program", "", module + "policy/opa", "the compiled form stands without OPA"},
	{"pep", "", "github.com/open-policy-agent/opa", "enforcement sees a Decider, not an engine"},
	{"proxy", "", "github.com/open-policy-agent/opa", "enforcement sees a Decider, not an engine"},
	{"", "internal/tracing/otlp", "go.opentelemetry.io/otel/sdk", "rooms begin spans (internal/tracing); what becomes of them is for cmd to say"},
	{"", "internal/tracing/otlp", "go.opentelemetry.io/contrib", "gRPC is instrumented in one place"},
	{"", "internal/tracing", "go.opentelemetry.io/otel/trace", "internal/tracing is free where nothing is traced, the API is not"},
}

func TestForbiddenImports(t *testing.T) {
	for _, p := range load(t) {
		for _, f := range forbidden {
			if !within(p.ImportPath, f.inside) || exempt(p.ImportPath, f.except) {
				continue
			}
			for _, imp := range p.Imports {
				if imp == f.imp || strings.HasPrefix(imp, f.imp+"/") {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, f.reason)
				}
			}
		}
	}
}

func TestSidecarStaysSmall(t *testing.T) {
	for _, p := range load(t) {
		var banned []string
		switch p.ImportPath {
		case "cmd/writ-sidecar":
			banned = []string{"database/sql", "modernc.org/sqlite", "k8s.io/client-go", module + "identity/registry", module + "identity/issuer", "go.opentelemetry.io/otel/sdk"}
		case "cmd/writ-agent":
			banned = []string{"database/sql", "modernc.org/sqlite", "github.com/open-policy-agent/opa/v1/rego", "k8s.io/client-go", module + "identity/attest/server"}
		}
		for _, dep := range p.Deps {
			for _, b := range banned {
				// database/sql/driver holds two interfaces and comes with UUIDs.
				if dep == b || strings.HasPrefix(dep, b+"/") && dep != "database/sql/driver" {
					t.Errorf("%s links %s", p.ImportPath, dep)
				}
			}
		}
	}
}

func within(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

func exempt(path, dirs string) bool {
	for dir := range strings.SplitSeq(dirs, ",") {
		if dir != "" && within(path, dir) {
			return true
		}
	}
	return false
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range load(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		var docs int
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil && !strings.HasSuffix(name, ".pb.go") {
				docs++
			}
		}
		generated := strings.HasSuffix(p.Name, "v1")
		if docs != 1 && !generated {
			t.Errorf("%s has %d package comments, want one", p.ImportPath, docs)
		}
	}
}

// Package rego holds the policy that is Writ's own: the root rule that every
// decision goes through, and the schema of its input.
//
// It is text only; package policy/opa gives it meaning.
package rego

import (
	"embed"
	"io/fs"
	"path"
	"strings"
)

//go:embed writ/*.rego schemas/input.json schemas/admin.json
var files embed.FS

// Modules returns the modules of package writ by file name, without tests.
func Modules() map[string]string {
	return modules(func(name string) bool { return !strings.HasSuffix(name, "_test.rego") })
}

// Tests returns the tests of those modules by file name.
func Tests() map[string]string {
	return modules(func(name string) bool { return strings.HasSuffix(name, "_test.rego") })
}

// InputSchema returns the JSON Schema of an input, version 1.
func InputSchema() []byte { return mustRead("schemas/input.json") }

// AdminSchema returns the JSON Schema of what an admin policy is asked about.
func AdminSchema() []byte { return mustRead("schemas/admin.json") }

func modules(want func(string) bool) map[string]string {
	entries, err := fs.ReadDir(files, "writ")
	if err != nil {
		panic(err) // The directory is part of the program.
	}
	m := make(map[string]string)
	for _, e := range entries {
		if want(e.Name()) {
			name := path.Join("writ", e.Name())
			m[name] = string(mustRead(name))
		}
	}
	return m
}

func mustRead(name string) []byte {
	data, err := files.ReadFile(name)
	if err != nil {
		panic(err) // The file is part of the program.
	}
	return data
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/writ-dev/writ/policy/opa"
)

// library writes the page about the Rego library from the comments of its
// sources.
func library(file string) error {
	page, err := libraryPage()
	if err != nil {
		return err
	}
	return os.WriteFile(file, page, 0o644)
}

func libraryPage() ([]byte, error) {
	packages, err := opa.Library()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("# The Rego library\n\n<!-- Made by `make generate`; edit the comments in rego/writ/ instead. -->\n\n" +
		"What a policy can import. It is part of the programs, so nothing has to be\ncopied, and nobody else can define it. " +
		"A function gives nothing, and a condition\nwith it does not hold, for a value that is not what it wants; it is no error.\n" +
		"[`policyctl policy check`](../policy.md#check-and-test) refuses a name that is not in it.\n\n" +
		"Each example holds for the request in\n[`library_test.rego`](../../rego/writ/library_test.rego), where a test asks it.\n\n")
	for _, p := range packages {
		fmt.Fprintf(&out, "- [`data.writ.%s`](#datawrit%s): %s\n", p.Name, p.Name, p.Title)
	}
	for _, p := range packages {
		fmt.Fprintf(&out, "\n## data.writ.%s\n\n%s\n\n| | |\n|---|---|\n", p.Name, p.Description)
		for _, e := range p.Entries {
			text := strings.NewReplacer("|", `\|`, "<", `\<`).Replace(strings.Join(strings.Fields(e.Description), " "))
			fmt.Fprintf(&out, "| `%s.%s` | %s<br>`%s` |\n", p.Name, e.Signature, text, strings.ReplaceAll(e.Example, "|", `\|`))
		}
	}
	return out.Bytes(), nil
}

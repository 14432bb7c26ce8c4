// Package promtest holds the page of metrics to what programs register, in tests.
package promtest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	describedAs = regexp.MustCompile(`fqName: "([^"]+)"`)
	row         = regexp.MustCompile("(?m)^\\| (`[^|]*`) \\| (?:gauge|counter|histogram) ")
	name        = regexp.MustCompile("`([a-z0-9_]+)")
)

// OnPage fails the test where the tables of the page and the registry differ in
// the metrics that begin with prefix.
func OnPage(t testing.TB, page, prefix string, reg *prometheus.Registry) {
	t.Helper()
	descs := make(chan *prometheus.Desc, 1000)
	reg.Describe(descs)
	close(descs)
	var have []string
	for desc := range descs {
		have = append(have, describedAs.FindStringSubmatch(desc.String())[1])
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, r := range row.FindAllStringSubmatch(string(text), -1) {
		for _, n := range name.FindAllStringSubmatch(r[1], -1) {
			told = append(told, n[1])
		}
	}
	other := func(n string) bool { return !strings.HasPrefix(n, prefix) }
	have, told = slices.DeleteFunc(have, other), slices.DeleteFunc(told, other)
	if len(have) == 0 {
		t.Errorf("no metric begins with %s", prefix)
	}
	for _, n := range have {
		if !slices.Contains(told, n) {
			t.Errorf("%s has no %s", page, n)
		}
	}
	for _, n := range told {
		if !slices.Contains(have, n) {
			t.Errorf("%s has %s, the program has not", page, n)
		}
	}
}

package rules

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSchema holds the schema for editors, and the reference, to the keys that
// there are.
func TestSchema(t *testing.T) {
	text, err := os.ReadFile("../../rego/schemas/rules.json")
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Properties           map[string]object
		AdditionalProperties any
	}
	var schema struct {
		object
		Definitions map[string]object
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/yaml-rules.md")
	if err != nil {
		t.Fatal(err)
	}
	when := schema.Definitions["condition"]
	for _, tt := range []struct {
		name string
		in   object
		of   any
	}{
		{"file", schema.object, file{}},
		{"rule", schema.Definitions["rule"], rule{}},
		{"source", schema.Definitions["source"], source{}},
		{"operation", schema.Definitions["operation"], operation{}},
		{"condition", when, condition{}},
		{"time", when.Properties["time"], timeRange{}},
		{"window", when.Properties["window"], window{}},
	} {
		var want []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(tt.of)) {
			if key := f.Tag.Get("yaml"); key != "" {
				want = append(want, key)
				if plain := strings.TrimPrefix(key, "not_"); !strings.Contains(string(page), "`"+plain) {
					t.Errorf("docs/yaml-rules.md does not say what %s is", key)
				}
			}
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(tt.in.Properties))); diff != "" {
			t.Errorf("keys of a %s in the schema (-parser +schema):\n%s", tt.name, diff)
		}
		if tt.in.AdditionalProperties != false {
			t.Errorf("the schema lets any key pass in a %s", tt.name)
		}
	}
	for _, f := range fields {
		if !strings.Contains(string(page), "`"+f.name+"`") {
			t.Errorf("docs/yaml-rules.md does not name the field %s", f.name)
		}
	}
}

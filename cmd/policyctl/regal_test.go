package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/lint"
)

func FuzzParseRegal(f *testing.F) {
	f.Add([]byte(`{"violations": [{"title": "a", "description": "b", "location": {"file": "./x.rego", "row": 1, "col": 2}}]}`))
	f.Add([]byte(`{"violations": [{}]}`))
	f.Fuzz(func(t *testing.T, output []byte) {
		findings, err := parseRegal(output)
		if err != nil {
			return
		}
		for _, finding := range findings {
			if finding.Severity != lint.Warning || !strings.HasPrefix(finding.Rule, "regal/") {
				t.Errorf("finding %+v", finding)
			}
		}
		if _, err := json.Marshal(findings); err != nil {
			t.Error(err)
		}
	})
}

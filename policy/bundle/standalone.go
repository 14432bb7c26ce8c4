package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/rego"
)

// standaloneManifest is the .manifest of a bundle for stock OPA.
type standaloneManifest struct {
	Revision    string   `json:"revision"`
	Roots       []string `json:"roots"`
	RegoVersion int      `json:"rego_version"`
}

// Standalone is what stock OPA needs to decide alike: rules and data of the
// content, which has no problems, as one document, and the root rule beside
// them, so that data.writ.decision answers. Tests are left out. time.now_ns is
// the decision's time here and the machine's there: our own modules ask
// input.time instead, so that a recorded input is decided as it was. Publishers
// cannot push it, since package writ is not theirs.
func (c Content) Standalone(revision string) (Content, error) {
	data, problems := c.Data()
	if len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	doc, err := encodeDocument(data)
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	m, err := json.Marshal(standaloneManifest{Revision: revision, Roots: []string{""}, RegoVersion: 1})
	if err != nil {
		return nil, err
	}
	files := []File{{"data.json", doc}, {manifestFile, m}}
	modules := rego.Modules()
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		files = append(files, File{name, []byte(strings.ReplaceAll(modules[name], "time.now_ns()", "decision_ns"))})
	}
	files = append(files, File{"writ/decision_ns.rego", []byte(decisionTime)})
	for _, f := range c {
		if f.IsModule() && !f.IsTest() {
			files = append(files, f)
		}
	}
	return NewContent(files)
}

// decisionTime falls back to the clock: with no time at all, nothing would ever
// expire.
const decisionTime = `# The time of the decision, nanoseconds since the Unix epoch.
package writ

decision_ns := ns if {
	ns := time.parse_rfc3339_ns(input.time)
} else := time.now_ns()
`

// encodeDocument writes data as JSON, a line at the end.
func encodeDocument(data map[string]any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(data); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

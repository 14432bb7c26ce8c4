package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// get asks once and wants 200.
func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s\n%s", url, resp.Status, body)
	}
	return string(body)
}

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}

var certHash = regexp.MustCompile(`Hash=([0-9a-f]+)`)

// clientSerial tells one client certificate from another, by the digest that
// the sidecar hands to the application.
func clientSerial(r *http.Request) string {
	if m := certHash.FindStringSubmatch(r.Header.Get("X-Forwarded-Client-Cert")); m != nil {
		return m[1]
	}
	return ""
}

// lastRuleIs returns nil once the newest decision was made by rule.
func (m *runningMesh) lastRuleIs(rule string) error {
	out, err := m.tryCtl("audit", "tail", "--backlog", "1", "--no-follow", "--output", "json", "--kind", "decision")
	if err != nil {
		return err
	}
	if !strings.Contains(string(out), rule) {
		return fmt.Errorf("%s does not decide yet", rule)
	}
	return nil
}

// workloads lists the entries of services by ID, without what changes at each
// start.
func (m *runningMesh) workloads() string {
	m.t.Helper()
	var list struct {
		Entries []struct {
			ID       string `json:"id"`
			SPIFFEID string `json:"spiffe_id"`
		} `json:"entries"`
	}
	if err := json.Unmarshal(m.ctl("entry", "list", "--output", "json"), &list); err != nil {
		m.t.Fatal(err)
	}
	var ids []string
	for _, e := range list.Entries {
		if strings.Contains(e.SPIFFEID, "/svc/") {
			ids = append(ids, e.ID+" "+e.SPIFFEID)
		}
	}
	if len(ids) == 0 {
		m.t.Fatal("no entries of services: the comparison would show nothing")
	}
	slices.Sort(ids)
	return strings.Join(ids, "\n")
}

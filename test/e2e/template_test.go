package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit/export"
)

// TestTemplates gives a user a name whom nobody registered: by X.509 in files and by
// JWT, on record with what it came from, and no longer than the template is there.
func TestTemplates(t *testing.T) {
	t.Parallel()
	p := startPair(t, hello, "1h")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Entries []struct {
			ParentID string `json:"parent_id"`
			SPIFFEID string `json:"spiffe_id"`
		}
	}
	if err := json.Unmarshal(p.ctl("entry", "list", "-o", "json", "--spiffe-id", "spiffe://example.org/svc/web"), &list); err != nil || len(list.Entries) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	p.ctl("entry", "template", "create", "--id", "users", "--spiffe-id", "spiffe://example.org/user/{unix:user}", "--parent-id", list.Entries[0].ParentID,
		"--selector", "unix:uid:"+me.Uid, "--dns", "{unix:uid}.users.example.org", "--x509-svid-ttl", "10m")
	name := "spiffe://example.org/user/" + me.Username
	dir := t.TempDir()
	write := func() error {
		_, err := p.tryCtl("svid", "write", dir, "--spiffe-id", name)
		return err
	}
	// The agent is told a moment later.
	eventually(t, 20*time.Second, write)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != name || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != me.Uid+".users.example.org" || time.Until(leaf.NotAfter) > 10*time.Minute {
		t.Errorf("the certificate names %v and %v, until %v", leaf.URIs, leaf.DNSNames, leaf.NotAfter)
	}
	if out := string(p.ctl("svid", "fetch", "--spiffe-id", name, "--audience", "db", "-o", "json")); !strings.Contains(out, name) {
		t.Errorf("JWT-SVID: %s", out)
	}
	seen := map[string]bool{}
	for _, e := range decodeLines[export.Record](t, p.ctl("audit", "export", "--format", "jsonl")) {
		if strings.HasSuffix(e.ActionObject, "-svid") && e.ActionObjectID == name {
			seen[e.ActionObject] = true
			details := fmt.Sprint(e.ActionDetails)
			for _, want := range []string{"users", "unix:user:" + me.Username, "unix:uid:" + me.Uid} {
				if !strings.Contains(details, want) || !strings.Contains(e.ActionActor, "/spire/agent/") {
					t.Errorf("on record of the %s is %s by %s, want %s", e.ActionObject, details, e.ActionActor, want)
				}
			}
		}
	}
	if !seen["x509-svid"] || !seen["jwt-svid"] {
		t.Errorf("on record are %v", seen)
	}
	p.ctl("entry", "template", "delete", "users")
	eventually(t, 20*time.Second, func() error {
		if write() == nil {
			return fmt.Errorf("%s is still given", name)
		}
		return nil
	})
}

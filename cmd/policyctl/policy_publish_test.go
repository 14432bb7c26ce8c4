package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/server"
)

// newApprover is a person with the file of the private key.
func newApprover(t *testing.T, name string) (server.Approver, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.NewKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name+".pem")
	writeTestFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return server.Approver{Name: name, Keys: keys}, file
}

type policyStep struct {
	args []string
	code int
	want string // in stdout, or in stderr when the code is 1
}

func runSteps(t *testing.T, socket string, steps []policyStep) {
	t.Helper()
	for _, s := range steps {
		code, stdout, stderr := policyCommand(t, "", append(s.args, "--server", socket)...)
		got := stdout
		if s.code == 1 {
			got = stderr
		}
		if code != s.code || !strings.Contains(got, s.want) {
			t.Errorf("%s: exit %d, want %d\nstdout: %s\nstderr: %s\nwant: %s", strings.Join(s.args, " "), code, s.code, stdout, stderr, s.want)
		}
	}
}

func TestPolicyProposals(t *testing.T) {
	ann, annKey := newApprover(t, "ann")
	bob, bobKey := newApprover(t, "bob")
	socket, key := startPolicyServer(t, func(c *server.Config) { c.Approvers, c.Approvals = []server.Approver{ann, bob}, 1 })
	get, post := policyDir(t, "GET"), policyDir(t, "POST")
	runSteps(t, socket, []policyStep{
		{[]string{"policy", "push", "--key", key, get}, 1, "every activation takes 1 approval here: propose it"},
		{[]string{"policy", "propose", get}, 2, "signature: the bundle is not signed: give the publisher's key with --key"},
		{[]string{"policy", "propose", "--key", key, "-m", "first", get}, 0, "proposal 1, 1 tests passed\nit has 0 of 1 approvals: every activation takes 1 approval here\nnext: policyctl policy approve 1"},
		{[]string{"policy", "activate", "1"}, 1, "proposal 1: 0 of 1 approval"},
		{[]string{"policy", "approve", "1", "--key", key}, 1, "which is no approver's"},
		{[]string{"policy", "approve", "1", "--key", annKey, "--digest", "00"}, 1, "it is not what you looked at"},
		{[]string{"policy", "approve", "1", "--key", annKey}, 0, "proposal 1 is approved by ann\nnext: policyctl policy activate 1"},
		{[]string{"policy", "proposals", "1"}, 0, "+++ orders.rego (proposed)"},
		{[]string{"policy", "activate", "1"}, 0, "revision 1.1@"},
		{[]string{"policy", "proposals"}, 0, "activated as 1"},
		{[]string{"policy", "list"}, 0, "  ann "},
		{[]string{"policy", "rollback", "1"}, 1, "every activation takes 1 approval"},
		{[]string{"policy", "propose", "--key", key, post}, 0, "proposal 2"},
		{[]string{"policy", "withdraw", "2", "-m", "no"}, 0, "proposal 2 is withdrawn"},
		{[]string{"policy", "activate", "2"}, 1, "proposal 2 is withdrawn"},
		{[]string{"policy", "proposals", "x"}, 1, "want a number"},

		{[]string{"policy", "break-glass", "--service", "orders", "--ticket", "INC 7", "--approver", "ann,bob", "--key", key}, 1, "--source: missing"},
		{[]string{"policy", "break-glass", "--service", "orders", "--source", "spiffe://example.org/svc/me", "--ticket", "INC 7", "--for", "2h", "--approver", "ann,bob", "--key", key}, 1, "want at most 1h"},
		{[]string{"policy", "break-glass", "--service", "orders", "--source", "spiffe://example.org/svc/me", "--ticket", "INC 7", "--approver", "ann,bob", "--key", key}, 0, "break-glass inc-7 until "},
		{[]string{"policy", "approve", "3", "--key", annKey}, 0, "it has 1 of 2 approvals"},
		{[]string{"policy", "activate", "3"}, 1, "break-glass inc-7 names bob, who has not signed"},
		{[]string{"policy", "approve", "3", "--key", bobKey}, 0, "next: policyctl policy activate 3"},
		{[]string{"policy", "activate", "3"}, 0, "revision 1.2@"},
		{[]string{"policy", "break-glass", "--end", "inc-8", "--key", key}, 1, `has no entry "inc-8"`},
		{[]string{"policy", "break-glass", "--end", "inc-7", "--key", key}, 0, "break-glass inc-7 would end: proposal 4"},
		{[]string{"policy", "break-glass", "--sources", post, "--service", "orders", "--source", "spiffe://example.org/svc/me", "--ticket", "INC 9", "--approver", "ann,bob", "--key", key}, 0, "break-glass inc-9 until "},
		{[]string{"policy", "proposals", "5"}, 0, `+allow contains "method" if input.request.method == "POST"`},
		{[]string{"policy", "diff", "1"}, 0, `+    "ticket": "INC 7"`},
		{[]string{"policy", "diff", "1", "2", "-o", "json"}, 0, `"diff": "diff writ/break_glass/data.json`},
		{[]string{"policy", "diff", "1", post}, 0, `-allow contains "method" if input.request.method == "GET"`},
		{[]string{"policy", "diff", "1", get}, 0, ""},
		{[]string{"policy", "diff", "1", "9"}, 1, "no policy revision 9"},
	})
}

func TestPolicyBreakGlassWithoutApprovers(t *testing.T) {
	socket, key := startPolicyServer(t)
	runSteps(t, socket, []policyStep{
		{[]string{"policy", "push", "--key", key, policyDir(t, "GET")}, 0, "is in force"},
		{[]string{"policy", "break-glass", "--service", "orders", "--source", "spiffe://example.org/svc/me", "--ticket", "T", "--approver", "ann,bob", "--key", key}, 0, "next: policyctl policy activate 1"},
		{[]string{"policy", "activate", "1"}, 0, "is in force, proposal 1"},
		{[]string{"policy", "break-glass", "--end", "t", "--key", key, "--publisher", "defualt"}, 1, `--publisher: "defualt" has no part in force: did you mean "default"?`},
		{[]string{"policy", "break-glass", "--end", "t", "--key", key, "--publisher", "default"}, 0, "break-glass t has ended, revision 1.3@"},
	})
}

// TestPolicyVerifyUnknownWorkload: a slice without rules, which anybody may
// have, proves nothing about the service that was meant.
func TestPolicyVerifyUnknownWorkload(t *testing.T) {
	decision, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&decision.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "decision.pem")
	writeTestFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	socket, key := startPolicyServer(t, func(c *server.Config) { c.DecisionKey = decision })
	dir := policyDir(t, "GET")
	verify := []string{"policy", "verify", "--rebuild", "--decision-key", file, dir, "--spiffe-id"}
	runSteps(t, socket, []policyStep{
		{[]string{"policy", "push", "--key", key, dir}, 0, "is in force"},
		{append(verify, "spiffe://example.org/svc/orders"), 0, "each as the sources give it"},
		{append(verify, "spiffe://example.org/svc/order"), 1, `no service of the catalogue has spiffe://example.org/svc/order: did you mean "spiffe://example.org/svc/orders"?`},
	})
}

// TestSkeletonAllOrNothing: what init could not finish leaves nothing behind,
// and takes nothing with it.
func TestSkeletonAllOrNothing(t *testing.T) {
	parent := t.TempDir()
	files := []skeletonFile{{path: "a.rego"}, {path: "none/b.rego"}}
	if err := writeSkeleton(filepath.Join(parent, "x", "policy"), files); err == nil {
		t.Fatal("a file was written into a directory that is not there")
	}
	writeTestFile(t, filepath.Join(parent, "kept"), "")
	if err := writeSkeleton(parent, files); err == nil {
		t.Fatal("a file was written into a directory that is not there")
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 1 || left[0].Name() != "kept" {
		t.Errorf("left: %v, %v", left, err)
	}
}

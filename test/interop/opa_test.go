//go:build interop

package interop

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/policy"
)

const (
	ownRego = "../../rego/writ"
	schema  = "../../rego/schemas/input.json"
	shop    = "../../deploy/examples/shop"
)

// Policy is plain Rego: OPA's own program checks it, tests it, and decides
// what the sidecars of a running mesh decided.
func TestOPA(t *testing.T) {
	opa := program(t, "opa")
	policies := filepath.Join(shop, "policy")
	t.Run("check", func(t *testing.T) {
		output(t, opa, "check", "--strict", "--schema", schema, ownRego, policies)
	})
	t.Run("a misspelt field is found", func(t *testing.T) {
		wrong := filepath.Join(t.TempDir(), "wrong.rego")
		check(t, os.WriteFile(wrong, []byte("package services.web\n\nallow contains \"x\" if input.request.methd == \"GET\"\n"), 0o600))
		if out, err := exec.Command(opa, "check", "--schema", schema, wrong).CombinedOutput(); err == nil || !bytes.Contains(out, []byte("methd")) {
			t.Errorf("the schema does not find it: %v\n%s", err, out)
		}
	})
	t.Run("test", func(t *testing.T) {
		out := output(t, opa, "test", "--format", "json", ownRego, policies)
		var results []struct {
			Fail, Skip bool
		}
		check(t, json.Unmarshal(out, &results))
		for _, r := range results {
			if r.Fail || r.Skip {
				t.Fatalf("%s", out)
			}
		}
		if len(results) < 5 {
			t.Errorf("%d tests ran", len(results))
		}
	})
	t.Run("decisions", func(t *testing.T) { decisions(t, opa, policies) })
}

// driven is the document of policyctl up --once --output json.
type driven struct {
	OK       bool
	Requests []struct {
		Caller, Target, Method, Path, Expected, Verdict, Rule string
	}
}

func decisions(t *testing.T, opa, policies string) {
	m, err := mesh.Load(filepath.Join(shop, "mesh.yaml"))
	check(t, err)
	dir := shortDir(t)
	data := filepath.Join(dir, "catalogue.json")
	catalogue, err := json.Marshal(map[string]any{"writ": map[string]any{"services": catalogueOf(m)}})
	check(t, err)
	check(t, os.WriteFile(data, catalogue, 0o600))

	var ours driven
	check(t, json.Unmarshal(output(t, program(t, "policyctl"), "up", "--once", "--output", "json",
		"-f", filepath.Join(shop, "mesh.yaml"), "--data-dir", filepath.Join(dir, "up")), &ours))
	if len(ours.Requests) != len(m.Requests) {
		t.Fatalf("%d requests were driven, the file has %d", len(ours.Requests), len(m.Requests))
	}
	for i, r := range m.Requests {
		if r.Expected == mesh.Refused {
			continue // before any decision
		}
		t.Run(strings.ReplaceAll(r.Name, "/", "∕"), func(t *testing.T) {
			input := filepath.Join(t.TempDir(), "input.json")
			encoded, err := policy.EncodeInput(inputOf(m, r))
			check(t, err)
			check(t, os.WriteFile(input, encoded, 0o600))
			var theirs struct {
				Verdict, Tier string
				Rules         []string
			}
			out := output(t, opa, "eval", "--format", "raw", "-d", ownRego, "-d", policies, "-d", data, "-i", input, "data.writ.decision")
			check(t, json.Unmarshal(out, &theirs))
			slices.Sort(theirs.Rules)
			rule := strings.Join(theirs.Rules, ", ")
			if rule == "" {
				rule = theirs.Tier
			}
			want := []string{r.Expected, theirs.Verdict, rule}
			got := []string{ours.Requests[i].Verdict, ours.Requests[i].Verdict, ours.Requests[i].Rule}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("file and OPA (-), the mesh (+):\n%s", diff)
			}
		})
	}
}

func catalogueOf(m *mesh.Mesh) map[string]any {
	services := map[string]any{}
	for _, s := range m.Services {
		services[s.Name] = map[string]any{"spiffe_ids": []string{s.SPIFFEID}, "mode": s.Mode}
	}
	return services
}

// inputOf is what the target's sidecar knows of a request.
func inputOf(m *mesh.Mesh, r mesh.Request) *policy.Input {
	caller, target := m.Service(r.Caller), m.Service(r.Target)
	path, query, _ := strings.Cut(r.Path, "?")
	in := &policy.Input{
		Direction:   policy.Inbound,
		Layer:       policy.LayerRequest,
		Source:      policy.Source{ID: caller.SPIFFEID, TrustDomain: m.TrustDomain, Path: caller.ID().Path(), Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: target.Name, ID: target.SPIFFEID},
		Request: policy.Request{
			Protocol: policy.HTTP, Method: r.Method, Host: r.Target, Path: path,
			Segments: strings.Split(strings.TrimPrefix(path, "/"), "/"), ContentLength: -1,
		},
		TokenStatus: policy.TokenAbsent,
		Connection:  policy.Connection{PeerIP: "127.0.0.1", ClientIP: "127.0.0.1", TLSVersion: "1.3"},
		Time:        time.Now().UTC(),
	}
	headers := policy.MapValues{}
	for name, value := range r.Headers {
		headers[strings.ToLower(name)] = []string{value}
	}
	in.Request.Headers = headers
	if values, err := url.ParseQuery(query); err == nil {
		in.Request.Query = policy.MapValues(values)
	}
	if target.Protocol == mesh.GRPC {
		in.Request.Protocol = policy.GRPC
		in.Request.GRPCService, in.Request.GRPCMethod = in.Request.Segments[0], in.Request.Segments[1]
	}
	return in
}

func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(bounded(t, time.Minute), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out
}

package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// imported runs spire import from one registrar to another.
func imported(t *testing.T, from, to *registrar, args ...string) (spireImport, int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
	args = append([]string{"spire", "import", "--data-dir", to.dir, "--output", "json", "--from", "unix://" + filepath.Join(from.dir, "run", "admin.sock")}, args...)
	code := execute(t.Context(), newRootCmd(a), args)
	var result spireImport
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		t.Fatalf("%v: %s%s", err, &stdout, &stderr)
	}
	return result, code
}

func did(r spireImport) []string {
	var all []string
	for _, c := range r.Changes {
		line := c.Do + " " + c.Kind + " " + c.ID
		if len(c.Fields) > 0 {
			line += " " + strings.Join(c.Fields, ",")
		}
		if c.Error != "" {
			line += ": " + c.Error
		}
		all = append(all, line)
	}
	return all
}

func testEntry(id, path string, selector string) *types.Entry {
	return &types.Entry{
		Id: id, SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: path}, ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/node/a"},
		Selectors: []*types.Selector{{Type: "unix", Value: selector}, {Type: "unix", Value: "gid:1"}},
	}
}

func TestSPIREImport(t *testing.T) {
	from, to := newRegistrar(t), newRegistrar(t)
	write := func(r *registrar, update bool, entries ...*types.Entry) {
		t.Helper()
		a := &app{dataDir: r.dir, output: "text"}
		err := a.entryAdmin(func(c entryv1.EntryClient) error {
			for _, e := range entries {
				if update {
					resp, err := c.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
					if err := oneResult(resp.GetResults(), err); err != nil {
						return err
					}
					continue
				}
				resp, err := c.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
				if err := oneResult(resp.GetResults(), err); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	write(from, false, testEntry("a", "/svc/a", "uid:1"), testEntry("b", "/svc/b", "uid:2"), testEntry("c", "/svc/c", "uid:3"))
	write(to, false, testEntry("own", "/svc/own", "uid:9"), testEntry("other", "/svc/c", "uid:3"))

	want := func(step string, got spireImport, code, wantCode int, equal int, lines ...string) {
		t.Helper()
		if code != wantCode || got.Equal != equal {
			t.Errorf("%s: exit code %d and %d equal, want %d and %d", step, code, got.Equal, wantCode, equal)
		}
		if diff := cmp.Diff(lines, did(got)); diff != "" {
			t.Errorf("%s: %s", step, diff)
		}
	}
	plan := []string{"create entry a", "create entry b", "create entry c", "only-here entry other", "only-here entry own"}
	got, code := imported(t, from, to, "--dry-run")
	want("dry run", got, code, 0, 0, plan...)
	got, code = imported(t, from, to, "--dry-run")
	want("dry run changes nothing", got, code, 0, 0, plan...)
	got, code = imported(t, from, to)
	plan[2] += ": entry other here has the same SPIFFE ID, parent and selectors under another ID"
	want("a twin under another ID", got, code, 1, 0, plan...)

	changed := testEntry("b", "/svc/b", "uid:22")
	changed.X509SvidTtl, changed.Hint = 60, "inner"
	write(from, true, changed)
	got, code = imported(t, from, to, "--prune")
	want("update and prune", got, code, 1, 1, "update entry b selectors,x509_svid_ttl,hint", plan[2], "remove entry other", "remove entry own")
	got, code = imported(t, from, to, "--prune")
	want("now it is free", got, code, 0, 2, "create entry c")
	got, code = imported(t, from, to, "--prune")
	want("again", got, code, 0, 3)
	if len(to.store.Index().Entries()) != 3 {
		t.Errorf("%d entries, want 3", len(to.store.Index().Entries()))
	}
}

func TestSPIREImportRefuses(t *testing.T) {
	to := newRegistrar(t)
	for name, args := range map[string][]string{
		"unix:///path":  {"--from", "/run/api.sock"},
		"no socket":     {"--from", "unix:///nowhere/api.sock"},
		"required flag": {},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
			code := execute(t.Context(), newRootCmd(a), append([]string{"spire", "import", "--data-dir", to.dir}, args...))
			if code != 1 || !strings.Contains(stderr.String(), name) {
				t.Errorf("exit code %d: %s", code, &stderr)
			}
		})
	}
}

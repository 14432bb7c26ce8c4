package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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

func failed[T interface{ GetStatus() *types.Status }](results []T, err error) error {
	if err != nil {
		return err
	}
	for _, r := range results {
		if s := r.GetStatus(); s.GetCode() != 0 {
			return errors.New(s.GetMessage())
		}
	}
	return nil
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
					if err := failed(resp.GetResults(), err); err != nil {
						return err
					}
					continue
				}
				resp, err := c.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
				if err := failed(resp.GetResults(), err); err != nil {
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
	// The other c says the same under another ID.
	plan := []string{"create entry a", "create entry b", "only-here entry own"}
	got, code := imported(t, from, to, "--dry-run")
	want("dry run", got, code, 0, 1, plan...)
	got, code = imported(t, from, to, "--dry-run")
	want("dry run changes nothing", got, code, 0, 1, plan...)
	got, code = imported(t, from, to)
	want("import", got, code, 0, 1, plan...)

	changed, twin := testEntry("b", "/svc/b", "uid:22"), testEntry("c", "/svc/c", "uid:3")
	changed.X509SvidTtl, changed.Hint = 60, "inner"
	twin.Hint = "twin"
	write(from, true, changed, twin)
	got, code = imported(t, from, to, "--prune")
	want("update and prune", got, code, 0, 1, "update entry b selectors,x509_svid_ttl,hint", "update entry other hint", "remove entry own")
	got, code = imported(t, from, to, "--prune")
	want("again", got, code, 0, 3)
	if len(to.store.Index().Entries()) != 3 {
		t.Errorf("%d entries, want 3", len(to.store.Index().Entries()))
	}
}

// Many go in batches; what the server refuses is told, and stops nothing else.
func TestSPIREImportBatches(t *testing.T) {
	from, to := newRegistrar(t), newRegistrar(t)
	const n = 2*importBatch + 7
	var entries []*types.Entry
	for i := range n {
		entries = append(entries, testEntry(fmt.Sprint("id-", i), fmt.Sprint("/svc/", i), fmt.Sprint("uid:", i)))
	}
	a := &app{dataDir: from.dir, output: "text"}
	err := a.entryAdmin(func(c entryv1.EntryClient) error {
		for batch := range slices.Chunk(entries, importBatch) {
			resp, err := c.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: batch})
			if err := failed(resp.GetResults(), err); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, code := imported(t, from, to); code != 0 || len(got.Changes) != n || len(to.store.Index().Entries()) != n {
		t.Errorf("exit code %d, %d changes, %d entries, want %d", code, len(got.Changes), len(to.store.Index().Entries()), n)
	}
	if got, code := imported(t, from, to); code != 0 || got.Equal != n {
		t.Errorf("exit code %d, %d equal, want %d", code, got.Equal, n)
	}
}

func TestImportTellsEachFailure(t *testing.T) {
	r := &spireImport{Changes: make([]spireChange, 5)}
	answer := func(code codes.Code, message string) *types.Status {
		return &types.Status{Code: int32(code), Message: message}
	}
	r.batches = []batch{
		{[]int{0, 3}, func(context.Context, *grpc.ClientConn) ([]*types.Status, error) {
			return []*types.Status{answer(codes.OK, ""), answer(codes.InvalidArgument, "bad")}, nil
		}},
		{[]int{1}, func(context.Context, *grpc.ClientConn) ([]*types.Status, error) { return nil, errors.New("down") }},
		{[]int{2}, func(context.Context, *grpc.ClientConn) ([]*types.Status, error) { return nil, nil }},
		{[]int{4}, func(context.Context, *grpc.ClientConn) ([]*types.Status, error) {
			return []*types.Status{answer(codes.OK, "")}, nil
		}},
	}
	last := 0
	r.apply(t.Context(), nil, func(done, of int) {
		if last = done; of != 5 {
			t.Errorf("of %d", of)
		}
	})
	var told []string
	for _, c := range r.Changes {
		told = append(told, c.Error)
	}
	if diff := cmp.Diff([]string{"", "down", "the server gave 0 results for 1", "bad", ""}, told); diff != "" || r.Failed != 3 || last != 5 {
		t.Errorf("%d failed, %d done: %s", r.Failed, last, diff)
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

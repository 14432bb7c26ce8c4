package opa_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// content reads files in txtar form: each after a line "-- path --". A path
// may come twice; the parts are put together.
func content(archive string) bundle.Content {
	var c bundle.Content
	files := map[string]int{}
	at := -1
	for line := range strings.Lines(archive) {
		name, isName := strings.CutPrefix(strings.TrimSuffix(line, " --\n"), "-- ")
		switch i, seen := files[name]; {
		case !isName && at >= 0:
			c[at].Content = append(c[at].Content, line...)
		case isName && seen:
			at = i
		case isName:
			at = len(c)
			files[name] = at
			c = append(c, bundle.File{Path: name})
		}
	}
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}

var at = time.Date(2030, 1, 1, 12, 30, 0, 0, time.UTC)

// snapshot prepares a policy that must be good.
func snapshot(t testing.TB, archive string) *policy.Snapshot {
	t.Helper()
	program, problems := opa.Check(content(archive))
	for _, p := range problems {
		t.Error(p)
	}
	if t.Failed() {
		t.FailNow()
	}
	s, err := program.Snapshot(opa.SnapshotConfig{
		Revision: policy.Revision{Epoch: 1, Number: 7, Digest: content(archive).Digest()},
		Timeout:  time.Minute, // The machine that runs tests may be busy.
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request is a GET of /reports on orders by web.
func request(change ...func(*policy.Input)) *policy.Input {
	in := &policy.Input{
		Direction:   policy.Inbound,
		Layer:       policy.LayerRequest,
		Source:      policy.Source{ID: "spiffe://example.org/svc/web", TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "orders", ID: "spiffe://example.org/svc/orders", Port: 8443},
		Request: policy.Request{
			Protocol: policy.HTTP, Method: "GET", Host: "orders", Path: "/reports", Segments: []string{"reports"},
			Query: policy.MapValues{}, Headers: policy.MapValues{}, ContentLength: 0,
		},
		TokenStatus: policy.TokenAbsent,
		Connection:  policy.Connection{PeerIP: "127.0.0.1", ClientIP: "127.0.0.1", TLSVersion: "1.3", ALPN: "h2"},
		Time:        at,
	}
	for _, f := range change {
		f(in)
	}
	return in
}

const catalogue = `
-- data.yaml --
writ:
  services:
    orders: {spiffe_ids: ["spiffe://example.org/svc/orders"]}
    payments: {spiffe_ids: ["spiffe://example.org/svc/payments"], mode: observe, observe_until: 2030-06-01, path: allow-double-slash}
`

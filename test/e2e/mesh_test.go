package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pair is a mesh of two services: web calls orders, which is this test itself
// behind a sidecar.
type pair struct {
	*runningMesh
	// url is where web's application finds orders.
	url string
	// file is the mesh file, and policy the directory of its policy.
	file, policy string
	app          *httptest.Server
}

const allowWeb = `# Who may call orders.
package services.orders

allow contains "web-may-call" if input.source.path == "/svc/web"
`

// startPair brings up web → orders with a life of SVIDs as given ("1h").
func startPair(t *testing.T, app http.Handler, svidTTL string) *pair {
	t.Helper()
	p := newPair(t, app, svidTTL)
	p.runningMesh = up(t, p.file, t.TempDir())
	return p
}

// newPair writes the mesh and starts the application, and no more.
func newPair(t *testing.T, app http.Handler, svidTTL string, more ...string) *pair {
	t.Helper()
	dir := t.TempDir()
	server := httptest.NewServer(app)
	t.Cleanup(server.Close)
	port := freePort(t)
	p := &pair{app: server, policy: filepath.Join(dir, "policy"), url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	write(t, dir, "policy/orders.rego", allowWeb)
	p.file = write(t, dir, "mesh.yaml", fmt.Sprintf(`trust_domain: example.org
svid_ttl: %s
%s
policy: policy
services:
  - name: orders
    address: %s
    protocol: http
  - name: web
    upstreams:
      - service: orders
        port: %d
`, svidTTL, strings.Join(more, "\n"), strings.TrimPrefix(server.URL, "http://"), port))
	return p
}

// hello is an application that answers everything.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hello %s\n", r.Header.Get("Writ-Source-Id"))
})

// writeFileAtomic replaces path in one step, as editors do.
func writeFileAtomic(t *testing.T, path, content string) {
	t.Helper()
	tmp := path + "~"
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

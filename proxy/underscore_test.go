package proxy

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
)

// What policy does not see as x-role must not reach an application that does.
func TestUnderscores(t *testing.T) {
	ca := testpki.New(t, "example.org")
	for setting, want := range map[string]string{"": "[] [] [user]", "strip": "[] [] [user]", "allow": "[admin] [late] [user]"} {
		t.Run(setting, func(t *testing.T) {
			cfg := serverConfig(app(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				fmt.Fprintf(w, "%v %v %v", r.Header["X_role"], r.Trailer["A_b"], r.Header["X-Role"])
			})))
			cfg.Inbound.Underscores = setting
			s := start(t, ca, "/svc/orders", cfg)
			s.SetSnapshot(peptest.Snapshot(1, "orders", serverID, peptest.Decide(func(in *policy.Input, out *policy.Decision) {
				out.Verdict = policy.Allow
				if saw := in.Request.Headers.Get("x_role"); len(saw) > 0 && setting != "allow" {
					t.Errorf("policy saw %q", saw)
				}
			})))
			_, body := exchange(t, ca, s, "POST / HTTP/1.1\r\nHost: x\r\nX-Role: user\r\nX_Role: admin\r\nTrailer: A_B\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA_B: late\r\n\r\n")
			if body != want {
				t.Errorf("the application saw %s, want %s", body, want)
			}
		})
	}
}

package issuer_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
)

// One agent's hunger for SVIDs of any kind is its own problem.
func TestSigningLimit(t *testing.T) {
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.SignPerSecond = 0.0001 }) // one at once
	ctx := t.Context()
	agents := []*agent{w.join(w.token("/node/a")), w.join(w.token("/node/a")), w.join(w.token("/node/a"))}
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	item := &svidv1.NewX509SVIDParams{EntryId: web.Id, Csr: csr(t, newKey(t), "spiffe://example.org/svc/web")}
	for name, call := range map[string]func(a *agent, n int) error{
		"JWT-SVID": func(a *agent, n int) error {
			_, err := a.svids().NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: web.Id, Audience: []string{fmt.Sprint(n)}})
			return err
		},
		"X509-SVID": func(a *agent, _ int) error {
			_, err := a.svids().BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{item}})
			return err
		},
		"own SVID": func(a *agent, _ int) error {
			_, err := a.agents().RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, a.key, "")}})
			return err
		},
	} {
		a := agents[0]
		agents = agents[1:]
		for n := range 3 {
			want := codes.OK
			if n > 0 {
				want = codes.ResourceExhausted
			}
			err := call(a, n)
			if got := status.Code(err); got != want {
				t.Errorf("%s number %d: %v, want %v", name, n, got, want)
			}
			// As whoever is refused because too many others ask.
			if after, ok := admit.RetryAfter(err); ok != (n > 0) || ok && (after < time.Hour || after > 3*time.Hour) {
				t.Errorf("%s number %d: come again in %v, %v; want in 10,000 seconds if refused", name, n, after, ok)
			}
		}
		_, err := a.svids().BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{item, item}})
		wantCode(t, err, codes.ResourceExhausted)
	}
}

// What a workload can have written into the record is short.
func TestAudienceOnRecord(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	half := strings.Repeat("<", 128)
	long := []string{half, half, "x"}
	for _, audience := range [][]string{{half, half}, long, {"x", half, half}} {
		_, err := a.svids().NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: web.Id, Audience: audience})
		must(t, err)
	}
	_, err := w.minting().MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Id: id("/adhoc"), Audience: long})
	must(t, err)
	acts := append(w.did("jwt-svid", "issued"), w.did("jwt-svid", "minted")...)
	var got [][][2]string
	for _, act := range acts {
		var about [][2]string
		for _, d := range act.Details {
			if strings.HasPrefix(d[0], "audience") {
				about = append(about, d)
			}
		}
		got = append(got, about)
	}
	digest := func(list string) [][2]string {
		sum := sha256.Sum256([]byte(list))
		return [][2]string{{"audiences", "3"}, {"audience_sha256", hex.EncodeToString(sum[:16])}}
	}
	q := `"` + half + `"`
	want := [][][2]string{
		{{"audience", half}, {"audience", half}},
		digest(`[` + q + `,` + q + `,"x"]`), digest(`["x",` + q + `,` + q + `]`), digest(`[` + q + `,` + q + `,"x"]`),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

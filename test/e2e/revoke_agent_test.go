package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/unixsock"
)

// asWorkload makes this test a workload of the mesh's node, named as web is, and
// returns its Workload API.
func (p *pair) asWorkload() *workloadapi.Client {
	p.t.Helper()
	var list struct {
		Entries []struct {
			SPIFFEID string `json:"spiffe_id"`
			ParentID string `json:"parent_id"`
		}
	}
	if err := json.Unmarshal(p.ctl("entry", "list", "--output", "json"), &list); err != nil {
		p.t.Fatal(err)
	}
	parent := ""
	for _, e := range list.Entries {
		if e.SPIFFEID == "spiffe://example.org/svc/web" {
			parent = e.ParentID
		}
	}
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.ctl("entry", "create", "--spiffe-id", "spiffe://example.org/svc/web", "--parent-id", parent,
		"--selector", fmt.Sprintf("unix:uid:%d", os.Getuid()), "--selector", "unix:path:"+exe)
	client, err := workloadapi.New(p.t.Context(), workloadapi.WithAddr("unix://"+unixsock.Path(filepath.Join(p.dataDir, "run", "agent", "agent.sock"))))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { client.Close() })
	return client
}

func asTLS(svid *x509svid.SVID) tls.Certificate {
	cert := tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// fetch waits for an X509-SVID that is not the one before.
func fetch(t *testing.T, client *workloadapi.Client, before *x509svid.SVID) *x509svid.SVID {
	t.Helper()
	var svid *x509svid.SVID
	eventually(t, 20*time.Second, func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if svid, err = client.FetchX509SVID(ctx); err == nil && before != nil && svid.Certificates[0].Equal(before.Certificates[0]) {
			err = errors.New("it is the SVID of before")
		}
		return err
	})
	return svid
}

// TestRevokeAgent revokes all that the mesh's node was issued: connections and
// streams with an SVID stolen there end, no other begins, and its JWT-SVIDs are
// refused, on record; what was not issued through that agent goes on; and whoever
// has a right to an SVID there has a new one.
func TestRevokeAgent(t *testing.T) {
	t.Parallel()
	p := startPair(t, http.HandlerFunc(helloOrStream), "1h")
	addr := p.inbound("orders")
	eventually(t, 20*time.Second, p.served)
	client := p.asWorkload()
	stolen := fetch(t, client, nil)
	audience := jwtsvid.Params{Audience: "orders"}
	token, err := client.FetchJWTSVID(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.ValidateJWTSVID(t.Context(), token.Marshal(), "orders"); err != nil {
		t.Fatal(err)
	}
	idle, stream := thief(t, addr, asTLS(stolen), "/"), thief(t, addr, asTLS(stolen), "/stream")
	// Signed by an administrator, through no agent.
	minted := thief(t, addr, p.mint(time.Hour), "/")

	var agents struct {
		Agents []struct{ ID string }
	}
	if err := json.Unmarshal(p.ctl("agent", "list", "--output", "json"), &agents); err != nil || len(agents.Agents) != 1 {
		t.Fatalf("%v, %v", agents, err)
	}
	p.ctl("svid", "revoke", "--reason", "node lost", "--agent", agents.Agents[0].ID)
	closed(t, idle, stream)
	stale := asTLS(stolen)
	port := knock(t, addr, &stale)
	eventually(t, 20*time.Second, func() error {
		for _, e := range p.export() {
			if e.Kind == "connection" && e.Outcome == "refused" && e.PeerPort == port && strings.Contains(e.Reason, "issued through "+agents.Agents[0].ID) {
				return nil
			}
		}
		return errors.New("the refusal is not on record")
	})
	refusedJWT(t, client, token)

	// Nobody else is concerned.
	fmt.Fprintf(minted, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(minted), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("on a connection whose SVID came through no agent: %v, %v", resp, err)
	}
	// The rightful ones go on.
	fresh := fetch(t, client, stolen)
	thief(t, addr, asTLS(fresh), "/")
	eventually(t, 20*time.Second, p.served)
	if again, err := client.FetchJWTSVID(t.Context(), audience); err != nil {
		t.Error(err)
	} else if _, err := client.ValidateJWTSVID(t.Context(), again.Marshal(), "orders"); err != nil {
		t.Errorf("a new JWT-SVID: %v", err)
	}
}

// TestRevokeJWT revokes one JWT-SVID by its jti, in a mesh that runs.
func TestRevokeJWT(t *testing.T) {
	t.Parallel()
	p := startPair(t, hello, "1h")
	client := p.asWorkload()
	fetch(t, client, nil)
	var tokens []*jwtsvid.SVID
	for _, audience := range []string{"orders", "billing"} {
		token, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	p.ctl("svid", "revoke", "--reason", "in a log", "--serial", fmt.Sprint(tokens[0].Claims["jti"]))
	refusedJWT(t, client, tokens[0])
	if _, err := client.ValidateJWTSVID(t.Context(), tokens[1].Marshal(), "billing"); err != nil {
		t.Errorf("another token: %v", err)
	}
	again, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "orders"})
	if err != nil || again.Marshal() == tokens[0].Marshal() {
		t.Fatalf("the revoked token was given out again, or none: %v", err)
	}
	if _, err := client.ValidateJWTSVID(t.Context(), again.Marshal(), "orders"); err != nil {
		t.Errorf("its successor: %v", err)
	}
}

func refusedJWT(t *testing.T, client *workloadapi.Client, token *jwtsvid.SVID) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		_, err := client.ValidateJWTSVID(t.Context(), token.Marshal(), token.Audience[0])
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "revoked") {
			return fmt.Errorf("a revoked JWT-SVID: %v", err)
		}
		return nil
	})
}

package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/attest/attesttest"
	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// fakeEngine answers one question of the Docker Engine API as a real engine does not
// when it is asked to. test/interop has the real one.
func fakeEngine(t *testing.T, answer http.HandlerFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containers/{id}/json", answer)
	server := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-done })
	return socket
}

const inspection = `{"Id": %q, "Image": "sha256:abc", "State": {"Pid": 7},
	"Config": {"Image": "registry/app:1", "Env": ["PATH=/bin", "STAGE=test"], "Labels": {"team": "a", "app": "x:y"}}}`

func TestSelectors(t *testing.T) {
	parsed, err := parse(fmt.Appendf(nil, inspection, attesttest.ID), attesttest.ID)
	if err != nil {
		t.Fatal(err)
	}
	got := parsed.selectors()
	want := []string{"docker:label:app:x:y", "docker:label:team:a", "docker:env:PATH=/bin", "docker:env:STAGE=test", "docker:image_id:registry/app:1", "docker:image_digest:sha256:abc"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
}

func TestNoContainer(t *testing.T) {
	for _, group := range []string{"/system.slice/ssh.service", attesttest.Pod, attesttest.Containerd, "/user.slice/user-1.slice" + attesttest.Docker} {
		proc, pid := attesttest.Proc(t, group)
		socket := fakeEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("the engine is asked") })
		if got, err := New(socket, proc).Attest(t.Context(), pid); got != nil || !errors.Is(err, cgroup.ErrNone) {
			t.Errorf("%s: %v, %v", group, got, err)
		}
	}
}

func TestEngineFails(t *testing.T) {
	proc, pid := attesttest.Proc(t, attesttest.Docker)
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"unknown":     {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `{"message":"No such container"}`, 404) }, "does not know"},
		"error":       {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oops", 500) }, "500"},
		"garbage":     {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "oops") }, "answer of the Docker engine"},
		"another one": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, inspection, "other") }, "answers for container"},
		"too much":    {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat(" ", maxReply+1)) }, "more than"},
		"no answer":   {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			limit := time.Minute
			if name == "no answer" {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			got, err := New(fakeEngine(t, tc.answer), proc).Attest(ctx, pid)
			if got != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, %v; want an error with %q", got, err, tc.want)
			}
		})
	}
	if _, err := New(filepath.Join(t.TempDir(), "none"), proc).Attest(t.Context(), pid); err == nil {
		t.Error("no engine is an engine")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(inspection, attesttest.ID)))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parse(body, attesttest.ID)
		if err != nil {
			return
		}
		for _, s := range got.selectors() {
			if !strings.HasPrefix(s, "docker:") {
				t.Errorf("selector %q", s)
			}
		}
	})
}

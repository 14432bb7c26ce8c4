package k8s

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/attest/attesttest"
	"github.com/writ-dev/writ/identity/attest/cgroup"
)

const podList = `{"kind": "PodList", "items": [{"metadata": {"name": "other", "namespace": "shop", "uid": "00000000-0000-0000-0000-000000000000"}}, {
  "metadata": {"name": "web-1", "namespace": "shop", "uid": %q, "labels": {"app": "web", "tier": "a:b"},
    "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "uid": "o-1"}]},
  "spec": {"nodeName": "n1", "serviceAccountName": "web"},
  "status": {
    "containerStatuses": [{"name": "app", "image": "app:1", "imageID": "sha256:1", "containerID": "containerd://%s"},
                          {"name": "side", "image": "side:1", "imageID": "sha256:2", "containerID": "containerd://ffff"}],
    "initContainerStatuses": [{"name": "init", "image": "init:1", "imageID": "sha256:3", "containerID": "containerd://eeee"}],
    "ephemeralContainerStatuses": [{"name": "debug", "containerID": "containerd://%s"}]}}]}`

var debugID = strings.Repeat("d", 64)

func pods() string { return fmt.Sprintf(podList, attesttest.PodUID, attesttest.ID, debugID) }

// fakeKubelet lists what it is told to whoever has the token: what a real kubelet does
// not say when it is asked to. test/interop has the real one, and the API server.
func fakeKubelet(t *testing.T, list func(n int) string) Config {
	t.Helper()
	n := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/pods" || r.Header.Get("Authorization") != "Bearer the-token" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		n++
		fmt.Fprint(w, list(n))
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return Config{
		URL: server.URL, TokenFile: write("token", []byte("the-token\n")),
		CAFile: write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
	}
}

func attest(t *testing.T, ctx context.Context, c Config, group string) ([]string, error) {
	t.Helper()
	proc, pid := attesttest.Proc(t, group)
	a, err := New(c, proc)
	if err != nil {
		t.Fatal(err)
	}
	return a.Attest(ctx, pid)
}

func TestSelectors(t *testing.T) {
	want := []string{
		"k8s:ns:shop", "k8s:sa:web", "k8s:node-name:n1", "k8s:pod-name:web-1", "k8s:pod-uid:" + attesttest.PodUID,
		"k8s:pod-label:app:web", "k8s:pod-label:tier:a:b", "k8s:pod-owner:ReplicaSet:web", "k8s:pod-owner-uid:ReplicaSet:o-1",
		"k8s:pod-image-count:2", "k8s:pod-image:sha256:1", "k8s:pod-image:app:1", "k8s:pod-image:sha256:2", "k8s:pod-image:side:1",
		"k8s:pod-init-image-count:1", "k8s:pod-init-image:sha256:3", "k8s:pod-init-image:init:1",
		"k8s:container-name:app", "k8s:container-image:sha256:1", "k8s:container-image:app:1",
	}
	list, err := parsePods([]byte(pods()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := find(list, cgroup.Container{ID: attesttest.ID, PodUID: attesttest.PodUID})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
}

// A container so young that the kubelet has not listed it yet.
func TestLate(t *testing.T) {
	got, err := attest(t, t.Context(), fakeKubelet(t, func(n int) string {
		if n == 1 {
			return strings.ReplaceAll(pods(), attesttest.ID, "")
		}
		return pods()
	}), attesttest.Pod)
	if err != nil || !slices.Contains(got, "k8s:container-name:app") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	all := func(int) string { return pods() }
	for _, tc := range []struct {
		name, group, want string
		list              func(int) string
		spoil             func(*Config)
	}{
		{name: "pod not on this node", list: func(int) string { return `{"items":[]}` }, want: "not known to Kubernetes"},
		{name: "container not of the pod", list: func(int) string { return strings.ReplaceAll(pods(), attesttest.ID, "") }, want: "not known to Kubernetes"},
		{name: "ephemeral container", group: strings.ReplaceAll(attesttest.Pod, attesttest.ID, debugID), list: all, want: "ephemeral"},
		{name: "garbage", list: func(int) string { return "oops" }, want: "pods of this node"},
		{name: "no right", list: all, spoil: func(c *Config) { os.WriteFile(c.TokenFile, []byte("wrong"), 0o600) }, want: "401"},
		{name: "no token", list: all, spoil: func(c *Config) { os.Remove(c.TokenFile) }, want: "token for Kubernetes"},
		{name: "another's certificate", list: all, spoil: func(c *Config) {
			// httptest has one certificate for all servers, and this name is not in it.
			c.URL = strings.Replace(c.URL, "127.0.0.1", "localhost", 1)
		}, want: "certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := fakeKubelet(t, func(n int) string {
				if n == 2 {
					cancel() // asked again: the time is over
				}
				return tc.list(n)
			})
			if tc.spoil != nil {
				tc.spoil(&c)
			}
			if tc.group == "" {
				tc.group = attesttest.Pod
			}
			got, err := attest(t, ctx, c, tc.group)
			if got != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, %v; want an error with %q", got, err, tc.want)
			}
		})
	}
	got, err := attest(t, t.Context(), fakeKubelet(t, func(int) string { t.Error("asked"); return "" }), attesttest.Docker)
	if got != nil || !errors.Is(err, cgroup.ErrNone) {
		t.Errorf("no pod: %v, %v", got, err)
	}
}

func TestConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{URL: "http://127.0.0.1:10255", CAFile: file},
		{URL: "https://n1:10250", InsecureKubelet: true},
		{URL: "https://127.0.0.1:6443", NodeName: "n1", InsecureKubelet: true},
		{CAFile: file}, {CAFile: file + "x"},
	} {
		if _, err := newAPI(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	if _, err := newAPI(Config{InsecureKubelet: true}); err != nil {
		t.Error(err)
	}
}

func FuzzPods(f *testing.F) {
	f.Add([]byte(pods()))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := parsePods(body)
		if err != nil {
			return
		}
		got, err := find(list, cgroup.Container{ID: attesttest.ID, PodUID: attesttest.PodUID})
		if err == nil && len(got) == 0 {
			t.Error("found, and nothing is said of it")
		}
	})
}

package k8spsat

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/writ-dev/writ/identity/attest/k8spsat"
	"github.com/writ-dev/writ/identity/attest/server"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// fakeCluster answers what an API server would, to see every refusal; the real
// one is asked in test/interop.
type fakeCluster struct {
	review authv1.TokenReviewStatus
	pod    corev1.Pod
	node   corev1.Node
	// broken, if set, is the status of every answer.
	broken int
}

// good is a cluster in which the agent's pod runs.
func good() *fakeCluster {
	return &fakeCluster{
		review: authv1.TokenReviewStatus{Authenticated: true, Audiences: []string{DefaultAudience}, User: authv1.UserInfo{
			Username: "system:serviceaccount:writ:agent",
			Extra:    map[string]authv1.ExtraValue{podName: {"agent-1"}, podUID: {"p-uid"}, nodeName: {"n1"}, nodeUID: {"n-uid"}},
		}},
		pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-1", Namespace: "writ", UID: "p-uid", Labels: map[string]string{"app": "agent", "secret": "x"}},
			Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "agent"}, Status: corev1.PodStatus{HostIP: "10.0.0.1", Phase: corev1.PodRunning}},
		node: corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "n-uid", Labels: map[string]string{"zone": "a", "other": "b"}}},
	}
}

func (f *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	missing := func() {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		answer(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404})
	}
	switch {
	case f.broken != 0:
		http.Error(w, "oops", f.broken)
	case r.Method == http.MethodPost && r.URL.Path == "/apis/authentication.k8s.io/v1/tokenreviews":
		answer(authv1.TokenReview{TypeMeta: metav1.TypeMeta{Kind: "TokenReview", APIVersion: "authentication.k8s.io/v1"}, Status: f.review})
	case r.URL.Path == "/api/v1/namespaces/writ/pods/agent-1" && f.pod.Name != "":
		pod := f.pod
		pod.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
		answer(pod)
	case r.URL.Path == "/api/v1/nodes/n1" && f.node.Name != "":
		node := f.node
		node.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
		answer(node)
	default:
		missing()
	}
}

func attestor(t *testing.T, f *fakeCluster) *Attestor {
	t.Helper()
	api := httptest.NewServer(f)
	t.Cleanup(api.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: x}}]\n", api.URL)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{TrustDomain: td, Clusters: map[string]Cluster{"prod": {
		Kubeconfig: kubeconfig, ServiceAccounts: []string{"writ:agent"}, NodeLabels: []string{"zone"}, PodLabels: []string{"app"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func payload(cluster, token string) []byte {
	data, _ := json.Marshal(k8spsat.Data{Cluster: cluster, Token: token})
	return data
}

func TestAttest(t *testing.T) {
	for name, change := range map[string]func(*fakeCluster){
		"new API server": func(*fakeCluster) {},
		"API server that does not tell the node": func(f *fakeCluster) {
			delete(f.review.User.Extra, nodeName)
			delete(f.review.User.Extra, nodeUID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := good()
			change(f)
			got, err := attestor(t, f).Attest(t.Context(), payload("prod", "tok"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.ID.String() != "spiffe://example.org/spire/agent/k8s_psat/prod/n-uid" || !got.CanReattest || got.Claim != nil {
				t.Errorf("got %+v", got)
			}
			var values []string
			for _, s := range got.Selectors {
				values = append(values, s.Type+":"+s.Value)
			}
			want := []string{"k8s_psat:cluster:prod", "k8s_psat:agent_ns:writ", "k8s_psat:agent_sa:agent", "k8s_psat:agent_pod_name:agent-1", "k8s_psat:agent_pod_uid:p-uid",
				"k8s_psat:agent_node_ip:10.0.0.1", "k8s_psat:agent_node_name:n1", "k8s_psat:agent_node_uid:n-uid", "k8s_psat:agent_node_label:zone:a", "k8s_psat:agent_pod_label:app:agent"}
			if diff := cmp.Diff(want, values); diff != "" {
				t.Errorf("selectors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name    string
		change  func(*fakeCluster)
		payload []byte
		want    string
	}{
		{name: "token not accepted", change: func(f *fakeCluster) {
			f.review = authv1.TokenReviewStatus{Error: "token tok-secret has expired"}
		}, want: "does not accept the token: token … has expired"},
		{name: "API server without audiences", change: func(f *fakeCluster) { f.review.Audiences = nil }, want: "not for spire-server"},
		{name: "other audience", change: func(f *fakeCluster) { f.review.Audiences = []string{"api"} }, want: "not for spire-server"},
		{name: "a person", change: func(f *fakeCluster) { f.review.User.Username = "ann" }, want: "no service account"},
		{name: "a person with such a name", change: func(f *fakeCluster) { f.review.User.Username = "x:serviceaccount:writ:agent" }, want: "no service account"},
		{name: "other service account", change: func(f *fakeCluster) { f.review.User.Username = "system:serviceaccount:writ:web" }, want: "writ:web is not one"},
		{name: "other namespace", change: func(f *fakeCluster) { f.review.User.Username = "system:serviceaccount:shop:agent" }, want: "shop:agent is not one"},
		{name: "token of no pod", change: func(f *fakeCluster) { delete(f.review.User.Extra, podUID) }, want: "not bound to a pod"},
		{name: "token of two pods", change: func(f *fakeCluster) { f.review.User.Extra[podUID] = authv1.ExtraValue{"a", "b"} }, want: "2 values"},
		{name: "pod gone", change: func(f *fakeCluster) { f.pod = corev1.Pod{} }, want: "is gone"},
		{name: "pod of the same name", change: func(f *fakeCluster) { f.pod.UID = "other" }, want: "another one now"},
		{name: "pod of another account", change: func(f *fakeCluster) { f.pod.Spec.ServiceAccountName = "web" }, want: "does not run as agent"},
		{name: "pod that ended", change: func(f *fakeCluster) { f.pod.Status.Phase = corev1.PodSucceeded }, want: "has ended"},
		{name: "pod on no node", change: func(f *fakeCluster) { f.pod.Spec.NodeName = "" }, want: "runs on no node"},
		{name: "token of another node", change: func(f *fakeCluster) { f.review.User.Extra[nodeName] = authv1.ExtraValue{"n2"} }, want: "the token was made on n2"},
		{name: "node of the same name", change: func(f *fakeCluster) { f.review.User.Extra[nodeUID] = authv1.ExtraValue{"old"} }, want: "another one now"},
		{name: "node gone", change: func(f *fakeCluster) { f.node = corev1.Node{} }, want: "n1, which is gone"},
		{name: "unknown cluster", payload: payload("test", "tok"), want: `cluster "test" is not configured`},
		{name: "no token", payload: payload("prod", ""), want: "missing"},
		{name: "no JSON", payload: []byte("tok-secret"), want: "not the JSON"},
		{name: "too long", payload: payload("prod", strings.Repeat("t", maxPayload)), want: "more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := good()
			if tc.change != nil {
				tc.change(f)
			}
			if tc.payload == nil {
				tc.payload = payload("prod", "tok-secret")
			}
			got, err := attestor(t, f).Attest(t.Context(), tc.payload, nil)
			if got != nil || !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v; want a refusal with %q", got, err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error %v tells the token", err)
			}
		})
	}
}

// A cluster that does not answer is no refusal: the agent tries again.
func TestClusterFails(t *testing.T) {
	f := good()
	f.broken = http.StatusForbidden
	if got, err := attestor(t, f).Attest(t.Context(), payload("prod", "tok"), nil); got != nil || err == nil || errors.Is(err, server.ErrRefused) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{TrustDomain: td, Clusters: map[string]Cluster{"c": {Kubeconfig: "/nowhere"}}}); err == nil {
		t.Error("no kubeconfig is one")
	}
	if _, err := New(Config{TrustDomain: td, Clusters: map[string]Cluster{"a/b": {Kubeconfig: "/nowhere"}}}); err == nil || !strings.Contains(err.Error(), "agents' IDs") {
		t.Errorf("a name that is no segment: %v", err)
	}
}

func FuzzData(f *testing.F) {
	f.Add(payload("prod", "tok"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := parseData(data)
		if err == nil && (d.Cluster == "" || d.Token == "" || len(d.Token) > len(data)) {
			t.Errorf("%+v", d)
		}
	})
}

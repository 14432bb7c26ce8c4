//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/attest/attesttest"
	"github.com/writ-dev/writ/identity/attest/k8s"
	"github.com/writ-dev/writ/identity/attest/k8spsat"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/test/programs"
)

// kube is a real API server with a real etcd. In TestKube it has no kubelet: pods are
// bound to a node, and the test writes what a kubelet would report of them. TestKubelet
// has one.
type kube struct {
	url, dir, caFile string
	client           *http.Client
	pki              *testpki.Machines
	signing          *ecdsa.PrivateKey // of service account tokens
}

// Users of the API server, by token. Rights are those that the documentation
// asks for.
const kubeUsers = `admin-token,admin,1,"system:masters"
writd-token,writd,2
agent-token,writ-agent,3
kubelet-token,system:node:n1,4,"system:nodes"
`

const kubeIssuer = "https://kubernetes.default.svc"

func startKube(t *testing.T) *kube {
	t.Helper()
	ctx := bounded(t, 2*time.Minute)
	ports, err := programs.FreePorts(3)
	check(t, err)
	k := &kube{url: fmt.Sprintf("https://127.0.0.1:%d", ports[2]), dir: shortDir(t)}
	k.pki = testpki.NewMachines(t)
	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	k.signing, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	k.caFile = testpki.WritePEM(t, k.dir, "ca.pem", nil, k.pki.Cert)
	roots := x509.NewCertPool()
	roots.AddCert(k.pki.Cert)
	k.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	signing := testpki.WritePEM(t, k.dir, "signing.key", k.signing)
	verifying, err := x509.MarshalPKIXPublicKey(k.signing.Public())
	check(t, err)
	verifyingFile := k.write(t, "signing.pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: verifying})))
	check(t, os.WriteFile(filepath.Join(k.dir, "users.csv"), []byte(kubeUsers), 0o600))

	etcdURL, peerURL := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	k.start(t, ctx, "etcd", fmt.Sprintf("127.0.0.1:%d", ports[0]),
		"--name=n", "--data-dir="+filepath.Join(k.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=n="+peerURL)
	api := k.start(t, ctx, "kube-apiserver", fmt.Sprintf("127.0.0.1:%d", ports[2]),
		"--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[2]),
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/24", "--cert-dir="+filepath.Join(k.dir, "certs"),
		"--tls-cert-file="+testpki.WritePEM(t, k.dir, "api.pem", nil, k.pki.Machine(t, "api", tlsKey.Public(), func(c *x509.Certificate) {
			c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		})),
		"--tls-private-key-file="+testpki.WritePEM(t, k.dir, "api.key", tlsKey),
		"--token-auth-file="+filepath.Join(k.dir, "users.csv"), "--authorization-mode=RBAC",
		"--service-account-issuer="+kubeIssuer, "--service-account-key-file="+verifyingFile, "--service-account-signing-key-file="+signing)
	check(t, api.Until(ctx, func() error {
		// The hooks after the start make the roles that users have.
		_, err := k.try(ctx, http.MethodGet, "/readyz", nil)
		return err
	}))
	return k
}

func (k *kube) start(t *testing.T, ctx context.Context, name, addr string, args ...string) *programs.Program {
	t.Helper()
	p, err := programs.Start(programs.Config{Path: program(t, name), Args: args, Log: filepath.Join(k.dir, name+".log")})
	check(t, err)
	t.Cleanup(func() {
		_ = p.Stop(10 * time.Second)
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, p.Tail())
		}
	})
	check(t, p.Reachable(ctx, "tcp", addr))
	return p
}

func (k *kube) try(ctx context.Context, method, path string, body any) (map[string]any, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, k.url+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer admin-token")
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	var object map[string]any
	_ = json.Unmarshal(answer, &object) // /readyz answers in words
	return object, nil
}

// call is a request of the administrator that succeeds.
func (k *kube) call(t *testing.T, method, path string, body any) map[string]any {
	t.Helper()
	object, err := k.try(bounded(t, 30*time.Second), method, path, body)
	check(t, err)
	return object
}

type object = map[string]any

func uidOf(o object) string { return o["metadata"].(object)["uid"].(string) }

// pod makes a pod on node n1 and reports one container of it, running.
func (k *kube) pod(t *testing.T, namespace, name, account string) (uid string) {
	t.Helper()
	path := "/api/v1/namespaces/" + namespace + "/pods"
	made := k.call(t, http.MethodPost, path, object{
		"metadata": object{"name": name, "labels": object{"app": name}},
		"spec": object{"nodeName": "n1", "serviceAccountName": account,
			"containers": []object{{"name": "main", "image": "registry/" + name + ":1"}}},
	})
	k.call(t, http.MethodPatch, path+"/"+name+"/status", object{"status": object{
		"phase": "Running", "hostIP": "10.1.2.3",
		"containerStatuses": []object{{"name": "main", "image": "registry/" + name + ":1", "imageID": "registry/" + name + "@sha256:1",
			"containerID": "containerd://" + attesttest.ID, "ready": true, "restartCount": 0}},
	}})
	return uidOf(made)
}

// remove deletes a pod at once, as a kubelet does when its containers are gone.
func (k *kube) remove(t *testing.T, namespace, name string) {
	t.Helper()
	k.call(t, http.MethodDelete, "/api/v1/namespaces/"+namespace+"/pods/"+name, object{"gracePeriodSeconds": 0})
}

// token asks for a service account token as the kubelet does for a pod; without
// a pod it is bound to none.
func (k *kube) token(t *testing.T, namespace, account, audience, pod, uid string) string {
	t.Helper()
	spec := object{"audiences": []string{audience}, "expirationSeconds": 600}
	if pod != "" {
		spec["boundObjectRef"] = object{"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
	}
	made := k.call(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token",
		object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
	return made["status"].(object)["token"].(string)
}

// resign is a token with the same claims but other times, signed by the API
// server's own key or by another.
func (k *kube) resign(t *testing.T, token string, key *ecdsa.PrivateKey, expires time.Time) string {
	t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	check(t, err)
	claims := object{}
	check(t, parsed.UnsafeClaimsWithoutVerification(&claims))
	claims["iat"], claims["nbf"], claims["exp"] = expires.Add(-time.Hour).Unix(), expires.Add(-time.Hour).Unix(), expires.Unix()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: parsed.Headers[0].KeyID}}, nil)
	check(t, err)
	signed, err := jwt.Signed(signer).Claims(claims).Serialize()
	check(t, err)
	return signed
}

func (k *kube) role(t *testing.T, user string, rules ...object) {
	t.Helper()
	const rbac = "/apis/rbac.authorization.k8s.io/v1/"
	k.call(t, http.MethodPost, rbac+"clusterroles", object{"metadata": object{"name": user}, "rules": rules})
	k.call(t, http.MethodPost, rbac+"clusterrolebindings", object{"metadata": object{"name": user},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
		"subjects": []object{{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}}})
}

func (k *kube) write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(k.dir, name)
	check(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

const kubeconfig = `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: writd-token}}]
`

func TestKube(t *testing.T) {
	k := startKube(t)
	k.role(t, "writd", object{"apiGroups": []string{"authentication.k8s.io"}, "resources": []string{"tokenreviews"}, "verbs": []string{"create"}},
		object{"apiGroups": []string{""}, "resources": []string{"pods", "nodes"}, "verbs": []string{"get"}})
	k.role(t, "writ-agent", object{"apiGroups": []string{""}, "resources": []string{"pods"}, "verbs": []string{"list"}})
	node := k.call(t, http.MethodPost, "/api/v1/nodes", object{"metadata": object{"name": "n1", "labels": object{"zone": "z1", "other": "x"}}})
	for _, namespace := range []string{"writ", "shop"} {
		k.call(t, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": namespace}})
		for _, account := range []string{"agent", "web"} {
			k.call(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts", object{"metadata": object{"name": account}})
		}
	}
	uid := k.pod(t, "writ", "agent-1", "agent")
	token := func() string { return k.token(t, "writ", "agent", "spire-server", "agent-1", uid) }
	access := k.write(t, "kubeconfig", fmt.Sprintf(kubeconfig, k.url, k.caFile))

	server := k.issuer(t, "writd", programs.StartWritd, programs.ServerConfig{
		More: fmt.Sprintf("attestors: {k8s_psat: {clusters: {test: {kubeconfig: %q, service_accounts: [\"writ:agent\"], node_labels: [zone]}}}}\n", access),
	})
	t.Run("node", func(t *testing.T) { k.joinKube(t, "writ-agent", server, token(), uidOf(node)) })
	t.Run("node with spire-agent", func(t *testing.T) { k.joinKube(t, "spire-agent", server, token(), uidOf(node)) })
	t.Run("node at spire-server", func(t *testing.T) {
		spire := k.issuer(t, "spire-server", programs.StartSPIRE, programs.ServerConfig{MorePlugins: fmt.Sprintf(`NodeAttestor "k8s_psat" { plugin_data { clusters = { "test" = {
			service_account_allow_list = ["writ:agent"] kube_config_file = %q allowed_node_label_keys = ["zone"] } } } }`, access)})
		k.joinKube(t, "writ-agent", spire, token(), uidOf(node))
	})
	t.Run("node refused", func(t *testing.T) { k.refusals(t, server, uid) })
	t.Run("workload", k.workload)
}

// issuer starts one that asks the API server.
func (k *kube) issuer(t *testing.T, name string, start func(context.Context, programs.ServerConfig) (*programs.Server, error), conf programs.ServerConfig) *programs.Server {
	t.Helper()
	ports, err := programs.FreePorts(2)
	check(t, err)
	conf.Path, conf.Dir, conf.TrustDomain, conf.IssuerPort, conf.ControlPort = program(t, name), filepath.Join(shortDir(t), "s"), domain, ports[0], ports[1]
	server, err := start(bounded(t, time.Minute), conf)
	check(t, err)
	t.Cleanup(func() {
		check(t, server.Stop())
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, server.Tail())
		}
	})
	return server
}

const kubeWritAgent = `trust_domain: %[1]s
server_address: 127.0.0.1:%[2]s
trust_bundle: %[3]s
data_dir: %[4]s/data
socket: %[4]s/run/api.sock
attestor: {k8s_psat: {cluster: test, token_file: %[5]s}}
`

const kubeSPIREAgent = `agent {
	trust_domain = "%[1]s"
	server_address = "127.0.0.1"
	server_port = "%[2]s"
	trust_bundle_path = "%[3]s"
	data_dir = "%[4]s/data"
	socket_path = "%[4]s/run/api.sock"
}
plugins {
	NodeAttestor "k8s_psat" { plugin_data { cluster = "test" token_path = "%[5]s" } }
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`

// joinKube starts an agent with the token and checks what it became.
func (k *kube) joinKube(t *testing.T, name string, server *programs.Server, token, nodeUID string) {
	ctx := bounded(t, time.Minute)
	dir := shortDir(t)
	bundle, err := server.Bundle(ctx)
	check(t, err)
	_, port, err := net.SplitHostPort(server.Addr)
	check(t, err)
	args, content := []string{"--config"}, kubeWritAgent
	if name == "spire-agent" {
		args, content = []string{"run", "-config"}, kubeSPIREAgent
	}
	trust := testpki.WritePEM(t, dir, "bundle.pem", nil, bundle.X509Authorities()...)
	conf := k.write(t, "agent.conf", fmt.Sprintf(content, domain, port, trust, dir, k.write(t, "agent.token", token)))
	known, err := agentv1.NewAgentClient(server.Admin()).ListAgents(ctx, &agentv1.ListAgentsRequest{})
	check(t, err)
	before := ""
	for _, a := range known.Agents {
		before = a.X509SvidSerialNumber
	}
	agent, err := programs.Start(programs.Config{Path: program(t, name), Args: append(args, conf), Log: filepath.Join(dir, "log")})
	check(t, err)
	t.Cleanup(func() {
		_ = agent.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of the agent's log:\n%s", agent.Tail())
		}
	})
	check(t, agent.Reachable(ctx, "unix", filepath.Join(dir, "run", "api.sock")))
	// All of these are the agent of the one node, and the last is the agent now.
	var got *types.Agent
	check(t, agent.Until(ctx, func() error {
		list, err := agentv1.NewAgentClient(server.Admin()).ListAgents(ctx, &agentv1.ListAgentsRequest{})
		if err != nil || len(list.Agents) != 1 {
			return fmt.Errorf("agents: %v, %w", list, err)
		}
		got = list.Agents[0]
		if got.X509SvidSerialNumber == before {
			return fmt.Errorf("the one of before, %v", got)
		}
		return nil
	}))
	if want := "/spire/agent/k8s_psat/test/" + nodeUID; got.Id.Path != want || !got.CanReattest || got.AttestationType != "k8s_psat" {
		t.Errorf("the agent is %v, want %s", got, want)
	}
	var selectors []string
	for _, s := range got.Selectors {
		selectors = append(selectors, s.Value)
	}
	for _, want := range []string{"cluster:test", "agent_ns:writ", "agent_sa:agent", "agent_pod_name:agent-1", "agent_node_name:n1", "agent_node_uid:" + nodeUID, "agent_node_ip:10.1.2.3", "agent_node_label:zone:z1"} {
		if !slices.Contains(selectors, want) {
			t.Errorf("no selector %s in %q", want, selectors)
		}
	}
	if slices.Contains(selectors, "agent_node_label:other:x") {
		t.Error("a label that is not allowed is a selector")
	}
}

// refusals are tokens that a real API server, or we, must not accept.
func (k *kube) refusals(t *testing.T, server *programs.Server, uid string) {
	good := k.token(t, "writ", "agent", "spire-server", "agent-1", uid)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	web := k.pod(t, "writ", "web-1", "web")
	other := k.pod(t, "shop", "agent-1", "agent")
	deleted := k.pod(t, "writ", "agent-2", "agent")
	ofDeleted := k.token(t, "writ", "agent", "spire-server", "agent-2", deleted)
	check(t, k.attest(t, server, "test", ofDeleted))
	k.remove(t, "writ", "agent-2")
	replaced := k.pod(t, "writ", "agent-3", "agent")
	ofReplaced := k.token(t, "writ", "agent", "spire-server", "agent-3", replaced)
	k.remove(t, "writ", "agent-3")
	k.pod(t, "writ", "agent-3", "agent")

	// What is refused below is good but for one thing, and that can be signed again.
	check(t, k.attest(t, server, "test", good))
	check(t, k.attest(t, server, "test", k.resign(t, good, k.signing, time.Now().Add(10*time.Minute))))
	// The API server remembers for ten seconds that a token was good, so of a
	// deleted pod it may be that it is gone.
	for _, tc := range []struct{ name, cluster, token, want string }{
		{"wrong audience", "test", k.token(t, "writ", "agent", "vault", "agent-1", uid), "does not accept the token"},
		{"audience of the API server", "test", k.token(t, "writ", "agent", kubeIssuer, "agent-1", uid), "does not accept the token"},
		{"wrong service account", "test", k.token(t, "writ", "web", "spire-server", "web-1", web), "writ:web is not one"},
		{"wrong namespace", "test", k.token(t, "shop", "agent", "spire-server", "agent-1", other), "shop:agent is not one"},
		{"no pod", "test", k.token(t, "writ", "agent", "spire-server", "", ""), "not bound to a pod"},
		{"deleted pod", "test", ofDeleted, "attestation refused"},
		{"pod of the same name", "test", ofReplaced, "attestation refused"},
		{"expired", "test", k.resign(t, good, k.signing, time.Now().Add(-time.Minute)), "does not accept the token"},
		{"signed by another", "test", k.resign(t, good, stranger, time.Now().Add(10*time.Minute)), "does not accept the token"},
		{"a user's token", "test", "admin-token", "does not accept the token"},
		{"no token at all", "test", "x", "does not accept the token"},
		{"unknown cluster", "prod", good, "not configured"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := k.attest(t, server, tc.cluster, tc.token)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want InvalidArgument with %q", err, tc.want)
			}
		})
	}
}

// attest shows a token to writd and returns what that says.
func (k *kube) attest(t *testing.T, server *programs.Server, cluster, token string) error {
	t.Helper()
	conn, err := grpc.NewClient(server.Addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))) // who we ask is not what is tested
	check(t, err)
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	check(t, err)
	payload, err := json.Marshal(k8spsat.Data{Cluster: cluster, Token: token})
	check(t, err)
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(bounded(t, 30*time.Second))
	check(t, err)
	check(t, stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data: &types.AttestationData{Type: k8spsat.Type, Payload: payload}, Params: &agentv1.AgentX509SVIDParams{Csr: csr}}}}))
	_, err = stream.Recv()
	return err
}

// workload asks the real API server of a pod whose control groups are made up,
// since nothing runs it.
func (k *kube) workload(t *testing.T) {
	uid := k.pod(t, "shop", "web-7", "web")
	group := strings.ReplaceAll(attesttest.Pod, strings.ReplaceAll(attesttest.PodUID, "-", "_"), strings.ReplaceAll(uid, "-", "_"))
	proc, pid := attesttest.Proc(t, group)
	a, err := k8s.New(k8s.Config{URL: k.url, NodeName: "n1", CAFile: k.caFile, TokenFile: k.write(t, "workload.token", "agent-token")}, proc)
	check(t, err)
	got, err := a.Attest(bounded(t, 10*time.Second), pid)
	check(t, err)
	for _, want := range []string{"ns:shop", "sa:web", "node-name:n1", "pod-name:web-7", "pod-uid:" + uid, "pod-label:app:web-7", "pod-image-count:1",
		"container-name:main", "container-image:registry/web-7:1", "container-image:registry/web-7@sha256:1"} {
		if !slices.Contains(got, "k8s:"+want) {
			t.Errorf("no k8s:%s in %q", want, got)
		}
	}
	k.remove(t, "shop", "web-7")
	// The list comes from a cache, which may be behind for a moment.
	short := bounded(t, 3*time.Second)
	for err = nil; err == nil; {
		got, err = a.Attest(short, pid)
	}
	if got != nil || !strings.Contains(err.Error(), "not known to Kubernetes") {
		t.Errorf("after the pod was deleted: %v, %v", got, err)
	}
	stranger, err := k8s.New(k8s.Config{URL: k.url, NodeName: "n1", CAFile: k.caFile, TokenFile: k.write(t, "stranger.token", "no-token")}, proc)
	check(t, err)
	if got, err := stranger.Attest(bounded(t, 10*time.Second), pid); got != nil || err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without rights: %v, %v", got, err)
	}
}

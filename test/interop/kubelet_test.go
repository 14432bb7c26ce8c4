//go:build interop

package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/test/programs"
)

const criConf = `version = 3
root = %[1]q
state = "/run/containerd"
[grpc]
  address = %[2]q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "writ.test/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # to go lower is not every root's right
`

// kubeletTunables are what a kubelet sets of the kernel, for the whole machine.
var kubeletTunables = []string{
	"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
	"/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes",
}

const kubeletConf = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: %[1]d
healthzPort: 0
readOnlyPort: 0
tlsCertFile: %[2]q
tlsPrivateKeyFile: %[3]q
authentication: {anonymous: {enabled: false}, webhook: {enabled: true, cacheTTL: 1s}}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 1s, cacheUnauthorizedTTL: 1s}}
containerRuntimeEndpoint: "unix://%[4]s"
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
enforceNodeAllocatable: [pods]
localStorageCapacityIsolation: false
staticPodPath: %[5]q
fileCheckFrequency: 1s
evictionHard: {memory.available: "1Mi", nodefs.available: "0%%", imagefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.inodesFree: "0%%"}
`

const kubeletAccess = `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: kubelet-token}}]
`

// kubelet is a host with a kubelet and its containerd, and a node n1 of the API server.
type kubelet struct {
	*site
	api       *kube
	manifests string            // directory of static pods
	digests   map[string]string // of images, by name
}

func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	api := startKube(t)
	api.call(t, http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", object{"metadata": object{"name": "kubelet"},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
		"subjects": []object{{"kind": "User", "name": "system:node:n1", "apiGroup": "rbac.authorization.k8s.io"}}})
	api.role(t, "writ-agent", object{"apiGroups": []string{""}, "resources": []string{"nodes/pods"}, "verbs": []string{"get"}})
	api.call(t, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": "shop"}})
	for _, account := range []string{"web", "other"} {
		api.call(t, http.MethodPost, "/api/v1/namespaces/shop/serviceaccounts", object{"metadata": object{"name": account}})
	}
	s := &site{dir: shortDir(t), version: 1, engine: "k8s", asked: 1, late: true, program: buildWorkload(t)}
	s.path = strings.Join([]string{filepath.Dir(program(t, "containerd-2/containerd")), filepath.Dir(program(t, "kubelet")), os.Getenv("PATH")}, ":")
	k := &kubelet{site: s, api: api, manifests: filepath.Join(s.dir, "manifests"), digests: map[string]string{}}
	check(t, os.Mkdir(k.manifests, 0o755))
	file := func(name, content string) string {
		path := filepath.Join(s.dir, name)
		check(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	ports, err := programs.FreePorts(1)
	check(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	cert := testpki.WritePEM(t, s.dir, "kubelet.pem", nil, api.pki.Machine(t, "kubelet", key.Public(), func(c *x509.Certificate) {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}))
	socket := filepath.Join(s.dir, "containerd.sock")
	conf := file("kubelet.yaml", fmt.Sprintf(kubeletConf, ports[0], cert, testpki.WritePEM(t, s.dir, "kubelet.key", key), socket, k.manifests))
	s.start(t, hostConfig{Copies: kubeletTunables, Engines: [][]string{
		{"containerd", "--config", file("containerd.toml", fmt.Sprintf(criConf, filepath.Join(s.dir, "data"), socket))},
		{"kubelet", "--config", conf, "--kubeconfig", file("kubeconfig", fmt.Sprintf(kubeletAccess, api.url, api.caFile)), "--hostname-override=n1"},
	}}, fmt.Sprintf("{k8s: {url: %q, ca_file: %q, token_file: %q}}", fmt.Sprintf("https://127.0.0.1:%d", ports[0]), api.caFile, file("token", "agent-token")))
	t.Logf("kubelet %s, %s", s.run(t, "kubelet", "--version"), s.run(t, "containerd", "--version"))
	for name, argument := range map[string]string{"pause": "pause", "one": "/io/s", "two": "/io/s"} {
		path := filepath.Join(s.dir, "image.tar")
		k.digests[name] = s.image(t, path, "writ.test/"+name+":1", argument, "MADE="+name)
		s.run(t, "ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", path)
	}
	return k
}

// podContainer is a container of a pod; it has a volume of its name for its socket.
type podContainer struct{ name, image string }

func (c podContainer) spec(more object) object {
	all := object{"name": c.name, "image": "writ.test/" + c.image + ":1", "imagePullPolicy": "Never",
		"env":          []object{{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix://" + socketDir + "/api.sock"}},
		"volumeMounts": []object{{"name": c.name, "mountPath": "/io"}, {"name": "agent", "mountPath": socketDir, "readOnly": true}}}
	maps.Copy(all, more)
	return all
}

const podsPath = "/api/v1/namespaces/shop/pods"

// pod describes a pod with these containers, and one volume more for a container
// called debug, which comes later.
func (k *kubelet) pod(t *testing.T, name, account string, more object, containers ...podContainer) (object, []*container) {
	t.Helper()
	volume := func(name, path string) object {
		return object{"name": name, "hostPath": object{"path": path, "type": "Directory"}}
	}
	volumes, specs, all := []object{volume("agent", filepath.Dir(k.node.socket))}, []object{}, []*container{}
	for _, c := range append(containers, podContainer{name: "debug"}) {
		at := k.container(t)
		all, volumes = append(all, at), append(volumes, volume(c.name, at.dir))
		if c.image != "" {
			specs = append(specs, c.spec(more))
		}
	}
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "namespace": "shop", "labels": object{"app": name}},
		"spec": object{"nodeName": "n1", "serviceAccountName": account, "automountServiceAccountToken": false, "hostNetwork": true, "dnsPolicy": "Default",
			"terminationGracePeriodSeconds": 0, "volumes": volumes, "containers": specs}}, all
}

// make is pod, and the API server told.
func (k *kubelet) make(t *testing.T, name, account string, more object, containers ...podContainer) []*container {
	t.Helper()
	p, all := k.pod(t, name, account, more, containers...)
	k.api.call(t, http.MethodPost, podsPath, p)
	return all
}

// TestKubelet attests pods that a real kubelet runs by a real containerd.
func TestKubelet(t *testing.T) {
	k := startKubelet(t)
	k.entries(t, map[string][]string{
		"/ns": {"k8s:ns:shop"}, "/node": {"k8s:node-name:n1"}, "/sa": {"k8s:sa:web"}, "/label": {"k8s:pod-label:app:web"},
		"/app": {"k8s:pod-name:web", "k8s:container-name:app"}, "/side": {"k8s:pod-name:web", "k8s:container-name:side"},
		"/image": {"k8s:container-image:writ.test/one:1"}, "/digest": {"k8s:container-image:" + k.digests["one"]},
		"/two": {"k8s:pod-image-count:2", "k8s:pod-image:writ.test/two:1"},
	})
	other := k.make(t, "other", "other", object{"resources": object{"requests": object{"cpu": "1m"}}}, podContainer{"app", "two"})[0]
	other.begins(t, k.site)
	web := k.make(t, "web", "web", nil, podContainer{"app", "one"}, podContainer{"side", "two"})
	app, side, debug := web[0], web[1], web[2]
	all := []string{"/ns", "/node", "/sa", "/label", "/app", "/image", "/digest", "/two"}
	app.begins(t, k.site)
	side.begins(t, k.site)
	t.Run("selectors", func(t *testing.T) {
		app.wants(t, all...)
		side.wants(t, "/ns", "/node", "/sa", "/label", "/side", "/two")
		other.wants(t, "/ns", "/node")
	})
	t.Run("guaranteed resources", func(t *testing.T) {
		limits := object{"cpu": "10m", "memory": "64Mi"}
		sure := k.make(t, "sure", "other", object{"resources": object{"requests": limits, "limits": limits}}, podContainer{"app", "two"})[0]
		sure.begins(t, k.site)
		sure.wants(t, "/ns", "/node")
	})
	t.Run("ephemeral container", func(t *testing.T) {
		k.api.call(t, http.MethodPatch, podsPath+"/web/ephemeralcontainers", object{"spec": object{"ephemeralContainers": []object{podContainer{"debug", "one"}.spec(nil)}}})
		// As long as the kubelet does not list it, that is the reason.
		check(t, k.node.agent.Until(bounded(t, 30*time.Second), func() error {
			debug.wants(t)
			if k.logged(t, "debug is an ephemeral container") == 0 {
				return errors.New("not refused as ephemeral yet")
			}
			return nil
		}))
	})
	t.Run("static pod", func(t *testing.T) {
		p, containers := k.pod(t, "static", "", nil, podContainer{"app", "one"})
		data, err := json.Marshal(p)
		check(t, err)
		check(t, os.WriteFile(filepath.Join(k.manifests, "static.json"), data, 0o600))
		containers[0].wants(t)
	})
	k.lies(t, app, other, all...)
	k.outages(t, app, all...)
	t.Run("rights taken away", func(t *testing.T) {
		k.api.call(t, http.MethodDelete, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/writ-agent", nil)
		// The kubelet remembers for a second what the agent may.
		check(t, k.node.agent.Until(bounded(t, 30*time.Second), func() error {
			if a := app.ask(t, "fetch"); a.Error == "" {
				return fmt.Errorf("still gets %q", a.IDs)
			}
			return nil
		}))
		k.failsWith(t, app, "403")
	})
}

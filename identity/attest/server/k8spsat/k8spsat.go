// Package k8spsat is the server half of attestation by a projected service
// account token of Kubernetes: the cluster's API server says whose the token is
// (TokenReview), and on which node its pod runs. The agent's half is
// identity/attest/k8spsat.
package k8spsat

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/writ-dev/writ/identity/attest/k8spsat"
	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/registry"
)

// DefaultAudience is what a token is for unless the configuration says otherwise.
const DefaultAudience = "spire-server"

// Names under which TokenReview tells of the pod that a token is bound to.
const (
	podName  = "authentication.kubernetes.io/pod-name"
	podUID   = "authentication.kubernetes.io/pod-uid"
	nodeName = "authentication.kubernetes.io/node-name"
	nodeUID  = "authentication.kubernetes.io/node-uid"
)

// Cluster is one cluster whose nodes may join.
type Cluster struct {
	// Kubeconfig says how to reach the API server; empty is the cluster that this
	// process runs in.
	Kubeconfig string
	// ServiceAccounts that agents run as: namespace:name.
	ServiceAccounts []string
	// Audience of which the token must have one; DefaultAudience if empty.
	Audience []string
	// NodeLabels and PodLabels become selectors.
	NodeLabels, PodLabels []string
}

// Config of an Attestor.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Clusters    map[string]Cluster
}

// Attestor is the server half. It implements server.Attestor.
type Attestor struct {
	td       spiffeid.TrustDomain
	clusters map[string]*cluster
}

type cluster struct {
	Cluster
	api *api
}

var _ server.Attestor = (*Attestor)(nil)

// New makes an Attestor. It asks the clusters nothing yet.
func New(cfg Config) (*Attestor, error) {
	a := &Attestor{td: cfg.TrustDomain, clusters: map[string]*cluster{}}
	for _, name := range slices.Sorted(maps.Keys(cfg.Clusters)) {
		c := cfg.Clusters[name]
		if _, err := spiffeid.FromSegments(cfg.TrustDomain, name); err != nil {
			return nil, fmt.Errorf("cluster %q: the name becomes a part of agents' IDs: %w", name, err)
		}
		if len(c.Audience) == 0 {
			c.Audience = []string{DefaultAudience}
		}
		api, err := newAPI(c.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("cluster %q: %w", name, err)
		}
		a.clusters[name] = &cluster{Cluster: c, api: api}
	}
	return a, nil
}

// Type implements server.Attestor.
func (*Attestor) Type() string { return k8spsat.Type }

// maxPayload is what a token with its JSON takes at most.
const maxPayload = k8spsat.MaxToken + 1024

// Attest implements server.Attestor.
func (a *Attestor) Attest(ctx context.Context, payload []byte, _ server.Challenge) (*server.Attested, error) {
	data, err := parseData(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", server.ErrRefused, err)
	}
	c, ok := a.clusters[data.Cluster]
	if !ok {
		return nil, fmt.Errorf("%w: cluster %.64q is not configured (attestors.k8s_psat.clusters)", server.ErrRefused, data.Cluster)
	}
	who, err := c.review(ctx, data.Token)
	if err != nil {
		return nil, err
	}
	pod, node, err := c.place(ctx, who)
	if err != nil {
		return nil, err
	}
	id, err := spiffeid.FromSegments(a.td, "spire", "agent", k8spsat.Type, data.Cluster, string(node.UID))
	if err != nil {
		return nil, fmt.Errorf("uid of node %s: %w", node.Name, err)
	}
	return &server.Attested{ID: id, Selectors: c.selectors(data.Cluster, who, pod, node), CanReattest: true}, nil
}

func parseData(payload []byte) (d k8spsat.Data, err error) {
	if len(payload) > maxPayload {
		return d, fmt.Errorf("%d bytes, more than %d", len(payload), maxPayload)
	}
	if err := json.Unmarshal(payload, &d); err != nil {
		// What the decoder quotes could be of the token.
		return d, fmt.Errorf("not the JSON of k8s_psat")
	}
	if d.Cluster == "" || d.Token == "" {
		return d, fmt.Errorf("cluster or token is missing")
	}
	return d, nil
}

// bearer is what the API server says of a token.
type bearer struct {
	namespace, account string
	pod, podUID        string
	// node and nodeUID are empty where the API server is too old to tell.
	node, nodeUID string
}

// review asks whose the token is. Errors that wrap ErrRefused are about the
// token; others mean that nobody could say.
func (c *cluster) review(ctx context.Context, token string) (*bearer, error) {
	status, err := c.api.review(ctx, token, c.Audience)
	if err != nil {
		return nil, fmt.Errorf("ask Kubernetes to review the token: %w", err)
	}
	if !status.Authenticated {
		return nil, fmt.Errorf("%w: Kubernetes does not accept the token: %.200s", server.ErrRefused, cutToken(status.Error, token))
	}
	// An API server, or an authenticator in it, that knows no audiences accepts
	// tokens for anybody and leaves this empty.
	if !slices.ContainsFunc(status.Audiences, func(a string) bool { return slices.Contains(c.Audience, a) }) {
		return nil, fmt.Errorf("%w: the token is not for %s", server.ErrRefused, strings.Join(c.Audience, ", "))
	}
	who, err := parseBearer(&status.User)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", server.ErrRefused, err)
	}
	if account := who.namespace + ":" + who.account; !slices.Contains(c.ServiceAccounts, account) {
		return nil, fmt.Errorf("%w: service account %s is not one of those whose pods are agents (service_accounts)", server.ErrRefused, account)
	}
	return who, nil
}

func cutToken(message, token string) string { return strings.ReplaceAll(message, token, "…") }

func parseBearer(user *authv1.UserInfo) (*bearer, error) {
	parts := strings.Split(user.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "" {
		return nil, fmt.Errorf("the token is of %.100q, which is no service account", user.Username)
	}
	b := &bearer{namespace: parts[2], account: parts[3]}
	for key, into := range map[string]*string{podName: &b.pod, podUID: &b.podUID, nodeName: &b.node, nodeUID: &b.nodeUID} {
		switch values := user.Extra[key]; {
		case len(values) > 1:
			return nil, fmt.Errorf("%s has %d values", key, len(values))
		case len(values) == 1:
			*into = values[0]
		}
	}
	if b.pod == "" || b.podUID == "" {
		return nil, fmt.Errorf("the token is not bound to a pod: it must be a projected one")
	}
	return b, nil
}

// place finds the pod of the bearer and its node. The token said so when it was
// made; what counts is what is so now.
func (c *cluster) place(ctx context.Context, who *bearer) (*corev1.Pod, *corev1.Node, error) {
	refuse := func(format string, args ...any) (*corev1.Pod, *corev1.Node, error) {
		return nil, nil, fmt.Errorf("%w: pod %s/%s %s", server.ErrRefused, who.namespace, who.pod, fmt.Sprintf(format, args...))
	}
	pod, err := c.api.pod(ctx, who.namespace, who.pod)
	switch {
	case apierrors.IsNotFound(err):
		return refuse("is gone")
	case err != nil:
		return nil, nil, fmt.Errorf("ask Kubernetes for pod %s/%s: %w", who.namespace, who.pod, err)
	case string(pod.UID) != who.podUID:
		return refuse("is another one now than when the token was made")
	case pod.Spec.ServiceAccountName != who.account:
		return refuse("does not run as %s", who.account)
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return refuse("has ended")
	case pod.Spec.NodeName == "":
		return refuse("runs on no node")
	case who.node != "" && who.node != pod.Spec.NodeName:
		return refuse("is on node %s, the token was made on %s", pod.Spec.NodeName, who.node)
	}
	node, err := c.api.node(ctx, pod.Spec.NodeName)
	switch {
	case apierrors.IsNotFound(err):
		return refuse("is on node %s, which is gone", pod.Spec.NodeName)
	case err != nil:
		return nil, nil, fmt.Errorf("ask Kubernetes for node %s: %w", pod.Spec.NodeName, err)
	case node.UID == "":
		return refuse("is on node %s, which has no uid", pod.Spec.NodeName)
	case who.nodeUID != "" && who.nodeUID != string(node.UID):
		return refuse("is on node %s, which is another one now than when the token was made", pod.Spec.NodeName)
	}
	return pod, node, nil
}

// selectors are what entries may ask of the node.
func (c *cluster) selectors(name string, who *bearer, pod *corev1.Pod, node *corev1.Node) []registry.Selector {
	var all []registry.Selector
	add := func(parts ...string) {
		all = append(all, registry.Selector{Type: k8spsat.Type, Value: strings.Join(parts, ":")})
	}
	add("cluster", name)
	add("agent_ns", who.namespace)
	add("agent_sa", who.account)
	add("agent_pod_name", who.pod)
	add("agent_pod_uid", who.podUID)
	add("agent_node_ip", pod.Status.HostIP)
	add("agent_node_name", node.Name)
	add("agent_node_uid", string(node.UID))
	labels := func(kind string, have map[string]string, allowed []string) {
		for _, key := range slices.Sorted(maps.Keys(have)) {
			if slices.Contains(allowed, key) {
				add(kind, key, have[key])
			}
		}
	}
	labels("agent_node_label", node.Labels, c.NodeLabels)
	labels("agent_pod_label", pod.Labels, c.PodLabels)
	return all
}

package k8s

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// In a pod, these lead to the API server and prove the pod to it.
const (
	accountDir       = "/var/run/secrets/kubernetes.io/serviceaccount/"
	defaultTokenFile = accountDir + "token"
	defaultCAFile    = accountDir + "ca.crt"
	defaultKubelet   = "https://127.0.0.1:10250"
)

// maxReply bounds what is read of an answer, in bytes. A node has at most a few
// hundred pods.
const maxReply = 64 << 20

// Config says whom to ask.
type Config struct {
	// URL of the kubelet, or with NodeName of the API server;
	// https://127.0.0.1:10250 if empty.
	URL string
	// NodeName makes it the API server that is asked, for the pods of this node.
	NodeName string
	// CAFile has the authorities (PEM) of the server; those of the pod's service
	// account if empty.
	CAFile string
	// InsecureKubelet does not verify the kubelet, which often has a certificate
	// that nobody signed. Only for a kubelet on a loopback address.
	InsecureKubelet bool
	// TokenFile has the bearer token; that of the pod's service account if empty.
	TokenFile string
}

// api asks one server which pods there are.
type api struct {
	url, tokenFile string
	client         *http.Client
}

func newAPI(c Config) (*api, error) {
	if c.URL == "" {
		c.URL = defaultKubelet
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("url %q: want https://host:port", c.URL)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case c.InsecureKubelet && c.NodeName == "" && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1" || u.Hostname() == "localhost"):
		config.InsecureSkipVerify = true // asked for by insecure_kubelet, and on this machine
	case c.InsecureKubelet:
		return nil, errors.New("insecure_kubelet is for a kubelet on a loopback address")
	default:
		if c.CAFile == "" {
			c.CAFile = defaultCAFile
		}
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authorities of %s: %w", u.Host, err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authorities of %s: no certificate (PEM) in %s", u.Host, c.CAFile)
		}
	}
	if c.TokenFile == "" {
		c.TokenFile = defaultTokenFile
	}
	a := &api{tokenFile: c.TokenFile, client: &http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, MaxIdleConns: 2},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	a.url = u.JoinPath("pods").String()
	if c.NodeName != "" {
		// From the API server's cache: agents on every node would otherwise read
		// etcd at each attestation.
		query := url.Values{"fieldSelector": {"spec.nodeName=" + c.NodeName}, "resourceVersion": {"0"}}
		a.url = u.JoinPath("api/v1/pods").String() + "?" + query.Encode()
	}
	return a, nil
}

// pods lists the pods of this node.
func (a *api) pods(ctx context.Context) ([]pod, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return nil, err
	}
	// The kubelet replaces it, so it is read each time.
	token, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("token for Kubernetes: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask Kubernetes: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask Kubernetes: %s answers %s", req.URL.Host, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, fmt.Errorf("ask Kubernetes: %w", err)
	}
	return parsePods(body)
}

func parsePods(body []byte) ([]pod, error) {
	if len(body) > maxReply {
		return nil, fmt.Errorf("pods of this node: more than %d bytes", maxReply)
	}
	var list struct{ Items []pod }
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("pods of this node: %w", err)
	}
	return list.Items, nil
}

// pod is what is read of a Pod.
type pod struct {
	Metadata struct {
		Name, Namespace, UID string
		Labels               map[string]string
		OwnerReferences      []struct{ Kind, Name, UID string }
	}
	Spec   struct{ NodeName, ServiceAccountName string }
	Status struct {
		ContainerStatuses, InitContainerStatuses, EphemeralContainerStatuses []containerStatus
	}
}

type containerStatus struct{ Name, Image, ImageID, ContainerID string }

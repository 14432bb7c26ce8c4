package k8spsat

import (
	"context"
	"fmt"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// apiTimeout bounds each question to a cluster: an attestation waits for it.
const apiTimeout = 5 * time.Second

// api asks an API server three questions. It is client-go's REST client with a
// scheme of two groups: the whole clientset would be most of this program.
type api struct {
	authentication, core rest.Interface
}

func newAPI(kubeconfig string) (*api, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("how to reach its API server (kubeconfig): %w", err)
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	for _, add := range []func(*runtime.Scheme) error{authv1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.Timeout = apiTimeout
	config.UserAgent = "writd"
	// How often nodes may try is limited where they call; client-go's own limit
	// would let one source's attempts hold up everybody's.
	config.QPS = -1
	client := func(path string, group schema.GroupVersion) (rest.Interface, error) {
		c := rest.CopyConfig(config)
		c.APIPath, c.GroupVersion = path, &group
		return rest.RESTClientFor(c)
	}
	a := &api{}
	if a.authentication, err = client("/apis", authv1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	if a.core, err = client("/api", corev1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *api) review(ctx context.Context, token string, audiences []string) (*authv1.TokenReviewStatus, error) {
	var reviewed authv1.TokenReview
	err := a.authentication.Post().Resource("tokenreviews").
		Body(&authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: audiences}}).
		Do(ctx).Into(&reviewed)
	return &reviewed.Status, err
}

func (a *api) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	var pod corev1.Pod
	err := a.core.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(&pod)
	return &pod, err
}

func (a *api) node(ctx context.Context, name string) (*corev1.Node, error) {
	var node corev1.Node
	err := a.core.Get().Resource("nodes").Name(name).Do(ctx).Into(&node)
	return &node, err
}

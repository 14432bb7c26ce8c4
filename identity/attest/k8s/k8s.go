// Package k8s attests workloads in pods of Kubernetes: the kernel says in which
// pod and container a process is, and the kubelet, or the API server, what these
// are. It speaks plain HTTPS, since client-go would be most of the agent.
//
// Selectors are SPIRE's: k8s:ns, sa, node-name, pod-name, pod-uid, pod-label,
// pod-owner, pod-owner-uid, pod-image, pod-image-count, pod-init-image,
// pod-init-image-count, container-name, container-image.
package k8s

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// Type is the first part of every selector of this package.
const Type = "k8s"

// kinds of selectors, without Type.
var kinds = []string{
	"ns", "sa", "node-name", "pod-name", "pod-uid", "pod-label", "pod-owner", "pod-owner-uid", "pod-image", "pod-image-count",
	"pod-init-image", "pod-init-image-count", "container-name", "container-image",
}

// retry is how long to wait where Kubernetes does not know the container yet.
const retry = 250 * time.Millisecond

// Attestor asks one kubelet or API server.
type Attestor struct {
	proc string
	api  *api
}

// New returns an Attestor; proc is cgroup.Proc but in tests.
func New(c Config, proc string) (*Attestor, error) {
	api, err := newAPI(c)
	if err != nil {
		return nil, err
	}
	return &Attestor{proc: proc, api: api}, nil
}

// Type implements attest.Workload.
func (*Attestor) Type() string { return Type }

// Kinds implements attest.Workload.
func (*Attestor) Kinds() []string {
	var all []string
	for _, k := range kinds {
		all = append(all, Type+":"+k)
	}
	return all
}

// errUnknown: the pod, or its container, is not among those that are listed. It
// may be so young that its status is not written yet.
var errUnknown = errors.New("not known to Kubernetes")

// Attest implements attest.Workload. A container that is not listed yet is asked
// for again until ctx ends.
func (a *Attestor) Attest(ctx context.Context, pid int) ([]string, error) {
	groups, err := cgroup.Of(a.proc, pid)
	if err != nil {
		return nil, err
	}
	container, err := groups.Container()
	if err != nil {
		return nil, err
	}
	if container.PodUID == "" {
		return nil, cgroup.ErrNone
	}
	var unknown error
	for {
		pods, err := a.api.pods(ctx)
		if err != nil && ctx.Err() != nil && unknown != nil {
			return nil, unknown // what it was that took so long
		}
		if err != nil {
			return nil, err
		}
		selectors, err := find(pods, container)
		if !errors.Is(err, errUnknown) {
			return selectors, err
		}
		unknown = fmt.Errorf("container %s of pod %s: %w", container.ID[:12], container.PodUID, err)
		timer := time.NewTimer(retry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, unknown
		}
	}
}

// find returns the selectors of a container. Ephemeral containers, which people
// add to a running pod to look into it, are not the workload.
func find(pods []pod, in cgroup.Container) ([]string, error) {
	for _, p := range pods {
		if p.Metadata.UID != in.PodUID {
			continue
		}
		for _, c := range append(slices.Clone(p.Status.ContainerStatuses), p.Status.InitContainerStatuses...) {
			if _, id, _ := strings.Cut(c.ContainerID, "://"); id == in.ID {
				return selectors(&p, &c), nil
			}
		}
		for _, c := range p.Status.EphemeralContainerStatuses {
			if _, id, _ := strings.Cut(c.ContainerID, "://"); id == in.ID {
				return nil, fmt.Errorf("%s is an ephemeral container of pod %s/%s: it is not the workload", c.Name, p.Metadata.Namespace, p.Metadata.Name)
			}
		}
	}
	return nil, errUnknown
}

func selectors(p *pod, c *containerStatus) []string {
	var all []string
	add := func(parts ...string) {
		s := Type + ":" + strings.Join(parts, ":")
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	add("ns", p.Metadata.Namespace)
	add("sa", p.Spec.ServiceAccountName)
	add("node-name", p.Spec.NodeName)
	add("pod-name", p.Metadata.Name)
	add("pod-uid", p.Metadata.UID)
	for _, key := range slices.Sorted(maps.Keys(p.Metadata.Labels)) {
		add("pod-label", key, p.Metadata.Labels[key])
	}
	for _, o := range p.Metadata.OwnerReferences {
		add("pod-owner", o.Kind, o.Name)
		add("pod-owner-uid", o.Kind, o.UID)
	}
	for _, images := range []struct {
		kind     string
		statuses []containerStatus
	}{{"pod-image", p.Status.ContainerStatuses}, {"pod-init-image", p.Status.InitContainerStatuses}} {
		add(images.kind+"-count", strconv.Itoa(len(images.statuses)))
		for _, s := range images.statuses {
			add(images.kind, s.ImageID)
			add(images.kind, s.Image)
		}
	}
	add("container-name", c.Name)
	add("container-image", c.ImageID)
	add("container-image", c.Image)
	return all
}

package cgroup

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	uid  = "6a0e1c1c-3f5e-4b6c-9d1a-0a1b2c3d4e5f"
	uid_ = "6a0e1c1c_3f5e_4b6c_9d1a_0a1b2c3d4e5f"
)

var id, other = strings.Repeat("a1", 32), strings.Repeat("b2", 32)

func TestContainer(t *testing.T) {
	inPod := Container{ID: id, PodUID: uid}
	alone, ofPodman, ofNerdctl := Container{ID: id, Name: "docker"}, Container{ID: id, Name: "libpod"}, Container{ID: id, Name: "nerdctl"}
	for _, tc := range []struct {
		name, file string
		want       Container
		err        string
	}{
		{name: "Docker, version 2, systemd", file: "0::/system.slice/docker-ID.scope\n", want: alone},
		{name: "Docker, version 2, cgroupfs", file: "0::/docker/ID\n", want: alone},
		{name: "Docker, version 1", file: "2:cpu,cpuacct:/docker/ID\n1:name=systemd:/docker/ID\n0::/system.slice/containerd.service\n", want: alone},
		{name: "Podman", file: "0::/machine.slice/libpod-ID.scope/container\n", want: ofPodman},
		{name: "Podman, cgroupfs", file: "0::/libpod_parent/libpod-ID\n", want: ofPodman},
		{name: "nerdctl", file: "0::/system.slice/nerdctl-ID.scope\n", want: ofNerdctl},
		{name: "containerd's default namespace, cgroupfs", file: "2:cpu:/default/ID\n0::/default/ID\n", want: Container{ID: id, Name: "default"}},
		{name: "a namespace that is asked for, cgroupfs", file: "2:cpu:/prod/ID\n0::/prod/ID\n", want: Container{ID: id, Name: "prod"}},
		{name: "pod, containerd", file: "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUI_.slice/cri-containerd-ID.scope\n", want: inPod},
		{name: "pod with guarantees, CRI-O", file: "0::/kubepods.slice/kubepods-podUI_.slice/crio-ID.scope\n", want: inPod},
		{name: "pod, cgroupfs, version 1", file: "3:memory:/kubepods/burstable/podUID/ID\n1:name=systemd:/kubepods/burstable/podUID/ID\n", want: inPod},
		{name: "pod, kubelet below a group of its own", file: "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podUI_.slice/cri-containerd-ID.scope\n", want: inPod},
		{name: "pod, containerd without systemd", file: "0::/system.slice/containerd.service/kubepods-burstable-podUI_.slice:cri-containerd:ID\n", want: inPod},
		{name: "pod beside the reader's", file: "0::/../../kubepods-besteffort-podUI_.slice/cri-containerd-ID.scope\n", want: inPod},
		{name: "pod beside the reader's, cgroupfs", file: "0::/../../podUID/ID\n", want: inPod},
		{name: "systemd inside of the container", file: "0::/kubepods.slice/kubepods-podUI_.slice/cri-containerd-ID.scope/init.scope\n", want: inPod},

		{name: "a container that pretends to be another inside", file: "0::/docker/ID/docker/OTHER\n", want: alone},
		{name: "a pod that pretends inside", file: "0::/docker/ID/kubepods/burstable/podUID/OTHER\n", want: alone},
		{name: "a user that pretends in its session", file: "0::/user.slice/user-1000.slice/user@1000.service/app.slice/kubepods.slice/kubepods-podUI_.slice/cri-containerd-ID.scope\n", err: "in none"},
		{name: "the same, from another namespace", file: "0::/../../../user.slice/user-1000.slice/user@1000.service/docker/ID\n", err: "in none"},
		{name: "a service that pretends", file: "0::/system.slice/evil.service/docker/ID\n", err: "in none"},
		{name: "hierarchies that contradict each other", file: "2:cpu:/docker/ID\n1:name=systemd:/docker/OTHER\n", err: "two containers"},
		{name: "two engines", file: "2:cpu:/docker/ID\n1:name=systemd:/prod/ID\n", err: "two containers"},
		{name: "a group that is no engine's", file: "0::/hidden/ID\n", err: "in none"},
		{name: "no container", file: "0::/system.slice/ssh.service\n", err: "in none"},
		{name: "the root", file: "0::/\n", err: "in none"},
		{name: "short ID", file: "0::/docker/abcdef\n", err: "in none"},
		{name: "long ID", file: "0::/docker/IDID\n", err: "in none"},
		{name: "not a group", file: "hello\n", err: "no control group"},
		{name: "relative path", file: "0::docker/ID\n", err: "no control group"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := strings.NewReplacer("UID", uid, "UI_", uid_, "OTHER", other, "ID", id).Replace(tc.file)
			got, err := containerIn(file)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, %v; want an error with %q", got, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func containerIn(file string) (Container, error) {
	g, err := parse([]byte(file))
	if err != nil {
		return Container{}, err
	}
	return g.Container("prod")
}

func TestUnit(t *testing.T) {
	for _, tc := range []struct{ file, want string }{
		{"0::/system.slice/nginx.service\n", "nginx.service"},
		{"0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"},
		{"0::/system.slice/app.service/worker/1\n", "app.service"},
		{"2:cpu:/system.slice/fake.service\n1:name=systemd:/system.slice/real.service\n", "real.service"},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service\n", "user@1000.service"},
		{"0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"},
		{"0::/init.scope\n", "init.scope"},
		{"0::/system.slice/_cgroup.service\n", "cgroup.service"},
		{"0::/\n", ""}, {"0::/system.slice\n", ""}, {"0::/docker/x.service\n", ""}, {"0::/../a.service\n", ""},
		{"2:cpu:/system.slice/nginx.service\n", ""}, {"0::/system.slice/.service\n", ""}, {"0::/system.slice/a b.service\n", ""},
	} {
		g, err := parse([]byte(tc.file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.Unit()
		if got != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%q: %q, %v; want %q", tc.file, got, err, tc.want)
		}
	}
}

func TestOf(t *testing.T) {
	g, err := Of(Proc, os.Getpid())
	if err != nil || len(g) == 0 {
		t.Fatalf("of this process: %v, %v", g, err)
	}
	if _, err := Of(Proc, 1<<30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}

// Whatever the file holds, a container has an ID that stands in it, and what
// hangs below a user's session or a service is none.
func FuzzGroups(f *testing.F) {
	f.Add([]byte("0::/docker/" + id + "\n"))
	f.Add([]byte("1:name=systemd:/kubepods/burstable/pod" + uid + "/" + id + "\n"))
	f.Add([]byte("0::/system.slice/a.service\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parse(data)
		if err != nil {
			return
		}
		if c, err := g.Container(); err == nil && (len(c.ID) != 64 || !strings.Contains(string(data), c.ID)) {
			t.Errorf("container %q", c.ID)
		}
		if u, err := g.Unit(); err == nil && (strings.Contains(u, "/") || !strings.Contains(string(data), u)) {
			t.Errorf("unit %q", u)
		}
		for i := range g {
			g[i].Path = "/user.slice/user-1.slice/user@1.service" + g[i].Path
		}
		if c, err := g.Container(); err == nil {
			t.Errorf("a user's session is container %q", c.ID)
		}
	})
}

//go:build interop

package interop

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sys/unix"
)

// TestContainers attests programs in containers that real engines made, through
// the control groups that the kernel and the engine make of them.
func TestContainers(t *testing.T) {
	workload := buildWorkload(t)
	versions, err := cgroupVersions()
	check(t, err)
	path := os.Getenv("PATH")
	for _, engine := range []struct {
		name, engine, path string
		test               func(t *testing.T, s *site)
	}{
		{"docker", "docker", path, testDocker},
		{"podman", "docker", path, testPodman},
		{"containerd", "containerd", path, testContainerd},
		{"containerd 2", "containerd", filepath.Dir(program(t, "containerd-2/containerd")) + ":" + path, testContainerd},
	} {
		for _, version := range versions {
			t.Run(fmt.Sprintf("%s, control groups %d", engine.name, version), func(t *testing.T) {
				engine.test(t, &site{dir: shortDir(t), version: version, program: workload, engine: engine.engine, path: engine.path})
			})
		}
	}
}

// buildWorkload builds what runs in containers.
func buildWorkload(t *testing.T) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "workload")
	build := exec.CommandContext(bounded(t, 2*time.Minute), "go", "build", "-o", path, "./containers/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the workload: %v\n%s", err, out)
	}
	return path
}

// cgroupVersions are those that this machine has. Where systemd uses version 2
// alone, the kernel's controllers are there and version 1 has none to offer.
func cgroupVersions() ([]int, error) {
	mounted, err := mountedHierarchies()
	if err != nil {
		return nil, err
	}
	var all []int
	if _, ok := mounted["devices"]; ok {
		all = append(all, 1)
	}
	if _, ok := mounted[""]; ok {
		all = append(all, 2)
	}
	if len(all) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	return all, nil
}

// site is a host with an engine, a node whose agent asks it, and containers.
type site struct {
	dir, program string
	engine, path string // its name in the agent's log, and where its programs are
	version      int
	host         *host
	node         *node
	asked        int  // number of the engine that the agent asks
	late         bool // it says that it is ready before it answers, and knows a container later than that runs
	made         int  // containers
}

// start starts the host with the engine and the node.
func (s *site) start(t *testing.T, c hostConfig, attestor string) {
	t.Helper()
	c.Path, c.Version, c.Dir = s.path, s.version, filepath.Join(s.dir, "host")
	check(t, os.Mkdir(c.Dir, 0o700))
	c.Name = "interop-" + filepath.Base(s.dir)
	c.Own, c.Over = []string{"/run"}, []string{"/etc", "/var"}
	c.Log = filepath.Join(s.dir, s.engine+".log")
	s.host = startHost(t, c)
	for i := range c.Engines {
		s.host.engine(t, "start", i)
	}
	s.node = newNodeBeside(t, s.host.beside(), "writ-agent", "writd", "", "workload_attestors: "+attestor)
}

// run runs a command in the host and gives its output.
func (s *site) run(t *testing.T, args ...string) string {
	t.Helper()
	args = append(s.host.inside(), args...)
	cmd := exec.CommandContext(bounded(t, time.Minute), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+s.dir, "HOME="+s.dir, "PATH="+s.path)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out.String(), said.String())
	}
	return strings.TrimSpace(out.String())
}

// entries makes one for each path.
func (s *site) entries(t *testing.T, selectors map[string][]string) {
	t.Helper()
	var all []*types.Entry
	for path, want := range selectors {
		e, err := s.node.server.Entry(s.node.alias, path, want...)
		check(t, err)
		all = append(all, e)
	}
	_, err := s.node.server.CreateEntries(bounded(t, 30*time.Second), all...)
	check(t, err)
}

// image writes an archive, as docker save does, with the workload as its only
// file and the argument for it, and gives the digest of the image.
func (s *site) image(t *testing.T, path, name, argument string, env ...string) string {
	t.Helper()
	program, err := os.ReadFile(s.program)
	check(t, err)
	archive := func(files ...any) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for i := 0; i < len(files); i += 2 {
			content := files[i+1].([]byte)
			check(t, w.WriteHeader(&tar.Header{Name: files[i].(string), Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}))
			_, err := w.Write(content)
			check(t, err)
		}
		check(t, w.Close())
		return buf.Bytes()
	}
	digest := func(content []byte) string {
		sum := sha256.Sum256(content)
		return hex.EncodeToString(sum[:])
	}
	marshal := func(v any) []byte {
		data, err := json.Marshal(v)
		check(t, err)
		return data
	}
	layer := archive("workload", program)
	config := marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/workload", argument}, "Env": env},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	file := digest(config) + ".json"
	manifest := marshal([]any{map[string]any{"Config": file, "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	check(t, os.WriteFile(path, archive(file, config, "layer.tar", layer, "manifest.json", manifest), 0o600))
	return "sha256:" + digest(config)
}

// container is one that an engine runs. Its workload calls this process, at a socket in
// a directory that it is given.
type container struct {
	dir string
	id  string

	listener *net.UnixListener
	conn     *net.UnixConn // once it called
	answers  *bufio.Reader
}

// socketDir is the agent's, as containers see it.
const socketDir = "/agent"

func (s *site) container(t *testing.T) *container {
	t.Helper()
	s.made++
	c := &container{dir: filepath.Join(s.dir, fmt.Sprint("c", s.made))}
	check(t, os.Mkdir(c.dir, 0o700))
	var err error
	c.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(c.dir, "s"), Net: "unix"})
	check(t, err)
	t.Cleanup(func() {
		c.listener.Close()
		if c.conn != nil {
			c.conn.Close()
		}
	})
	return c
}

// called waits until the workload called.
func (c *container) called(t *testing.T) {
	t.Helper()
	if c.conn != nil {
		return
	}
	check(t, c.listener.SetDeadline(time.Now().Add(time.Minute)))
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		t.Fatalf("the workload does not call: %v", err)
	}
	c.conn, c.answers = conn, bufio.NewReader(conn)
}

// answer is what the workload got; see containers/workload.
type answer struct {
	IDs    []string
	Groups string
	Error  string
}

// ask has the workload in a container do something.
func (c *container) ask(t *testing.T, request string) answer {
	t.Helper()
	c.called(t)
	check(t, c.conn.SetDeadline(time.Now().Add(30*time.Second)))
	_, err := fmt.Fprintln(c.conn, request)
	check(t, err)
	line, err := c.answers.ReadBytes('\n')
	check(t, err)
	var a answer
	check(t, json.Unmarshal(line, &a))
	return a
}

// pid of the workload, as this process sees it.
func (c *container) pid(t *testing.T) int {
	t.Helper()
	c.called(t)
	raw, err := c.conn.SyscallConn()
	check(t, err)
	var cred *unix.Ucred
	check(t, raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }))
	check(t, err)
	return int(cred.Pid)
}

// wants checks that a container gets exactly these identities.
func (c *container) wants(t *testing.T, paths ...string) {
	t.Helper()
	c.got(t, c.ask(t, "fetch"), paths...)
}

func (c *container) got(t *testing.T, a answer, paths ...string) {
	t.Helper()
	var want []string
	for _, p := range paths {
		want = append(want, "spiffe://"+domain+p)
	}
	slices.Sort(want)
	slices.Sort(a.IDs)
	if diff := cmp.Diff(want, a.IDs); diff != "" {
		t.Errorf("identities (-want +got):\n%s%s\ncontrol groups:\n%s", diff, a.Error, a.Groups)
	}
	if len(paths) == 0 && !strings.Contains(a.Error, "PermissionDenied") {
		t.Errorf("refused with %q, want PermissionDenied", a.Error)
	}
}

// begins waits until the agent has the entries, and the engine knows the container:
// then one that they are for gets something.
func (c *container) begins(t *testing.T, s *site) {
	t.Helper()
	check(t, s.node.agent.Until(bounded(t, 30*time.Second), func() error {
		if a := c.ask(t, "fetch"); a.Error != "" {
			return fmt.Errorf("%s\ncontrol groups:\n%s", a.Error, a.Groups)
		}
		return nil
	}))
}

// logged counts the lines of the agent's log that hold all of the words.
func (s *site) logged(t *testing.T, words ...string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(s.node.socket)), "log"))
	check(t, err)
	n := 0
	for line := range strings.Lines(string(data)) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// failsWith checks that a container gets nothing because of its engine, and that the
// agent says why.
func (s *site) failsWith(t *testing.T, c *container, words ...string) {
	t.Helper()
	words = append(words, "a workload attestor failed", s.engine)
	before := s.logged(t, words...)
	c.wants(t)
	if s.logged(t, words...) != before+1 {
		t.Errorf("the agent's log has no line more with %q", words)
	}
}

// outages are what engines do to us.
func (s *site) outages(t *testing.T, c *container, paths ...string) {
	t.Run("engine hangs", func(t *testing.T) {
		s.host.engine(t, "freeze", s.asked)
		defer s.host.engine(t, "thaw", s.asked)
		s.failsWith(t, c, "deadline exceeded")
	})
	t.Run("engine goes on", func(t *testing.T) { c.wants(t, paths...) })
	t.Run("engine away", func(t *testing.T) {
		s.host.engine(t, "stop", s.asked)
		defer s.host.engine(t, "start", s.asked)
		for range 5 {
			s.failsWith(t, c, "connect: ")
		}
	})
	t.Run("engine back", func(t *testing.T) {
		if s.late {
			c.begins(t, s)
		}
		c.wants(t, paths...)
	})
}

// groupsOf are the directories of a process's control groups, by hierarchy.
func groupsOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	mounted, err := mountedHierarchies()
	check(t, err)
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	check(t, err)
	all := map[string]string{}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if at, ok := mounted[fields[1]]; ok {
			all[fields[1]] = filepath.Join(at, fields[2])
		}
	}
	return all
}

func move(t *testing.T, pid int, dir string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644))
}

// lies are processes whose control groups are not those that an engine made for
// them. Entries tell the containers c and other apart.
func (s *site) lies(t *testing.T, c, other *container, paths ...string) {
	pid := c.pid(t)
	own, others, root := groupsOf(t, pid), groupsOf(t, other.pid(t)), groupsOf(t, s.host.pid)
	back := func() {
		for _, dir := range own {
			move(t, pid, dir)
		}
	}
	// in moves the process into a group that root makes, named from the host's root.
	in := func(t *testing.T, name string) {
		for h := range own {
			if h == "cpuset" { // wants processors of its own first
				move(t, pid, root[h])
				continue
			}
			dir := filepath.Dir(root[h])
			for part := range strings.SplitSeq(name, "/") {
				made := filepath.Join(dir, part)
				if err := os.Mkdir(made, 0o755); !errors.Is(err, os.ErrExist) {
					check(t, err)
					t.Cleanup(func() { check(t, os.Remove(made)) })
				}
				dir = made
			}
			move(t, pid, dir)
		}
		t.Cleanup(back)
	}
	// The host's first process is in a group below the host's root.
	group, err := filepath.Rel(filepath.Dir(root["pids"]), own["pids"])
	if s.version == 2 {
		group, err = filepath.Rel(filepath.Dir(root[""]), own[""])
	}
	check(t, err)
	t.Run("in no container any more", func(t *testing.T) {
		for h := range own {
			move(t, pid, root[h])
		}
		defer back()
		c.wants(t)
	})
	t.Run("back in it", func(t *testing.T) { c.wants(t, paths...) })
	if s.version == 1 {
		t.Run("in two containers", func(t *testing.T) {
			move(t, pid, others["pids"])
			defer back()
			s.failsWith(t, c, "two containers")
		})
	}
	t.Run("a container's name below a service", func(t *testing.T) {
		in(t, "some.service/"+group)
		c.wants(t)
	})
	t.Run("a container's name in a group that is no engine's", func(t *testing.T) {
		in(t, "hidden/"+filepath.Base(group))
		c.wants(t)
	})
	t.Run("a container that the engine does not know", func(t *testing.T) {
		in(t, group[:len(group)-64]+strings.Repeat("0", 64))
		s.failsWith(t, c, "know")
	})
	t.Run("a process of this machine", func(t *testing.T) {
		if got, err := s.node.workload.FetchX509SVID(bounded(t, 30*time.Second)); err == nil {
			t.Errorf("a process in no container got %v", got.ID)
		}
	})
}

func testDocker(t *testing.T, s *site) {
	conf := filepath.Join(s.dir, "daemon.json")
	check(t, os.WriteFile(conf, []byte("{}"), 0o600))
	s.docker(t,
		"dockerd", "--config-file="+conf, "--host=unix://"+filepath.Join(s.dir, "docker.sock"),
		"--data-root="+filepath.Join(s.dir, "data"), "--exec-root=/run/docker", "--pidfile=/run/docker.pid",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
		"--live-restore", "--exec-opt=native.cgroupdriver=cgroupfs")
}

// testPodman has Podman's service in the place of Docker's, as its users have.
func testPodman(t *testing.T, s *site) {
	s.docker(t,
		"podman", "--root="+filepath.Join(s.dir, "data"), "--runroot=/run/podman", "--cgroup-manager=cgroupfs", "--runtime=runc",
		"system", "service", "--time=0", "unix://"+filepath.Join(s.dir, "docker.sock"))
}

// docker attests by an engine with Docker's API at docker.sock.
func (s *site) docker(t *testing.T, engine ...string) {
	socket := filepath.Join(s.dir, "docker.sock")
	s.start(t, hostConfig{Network: true, Engines: [][]string{engine}}, fmt.Sprintf("{docker: {socket: %q}}", socket))
	docker := func(t *testing.T, args ...string) string {
		t.Helper()
		return s.run(t, append([]string{"docker", "--host=unix://" + socket}, args...)...)
	}
	t.Log(docker(t, "version", "--format", "Docker {{.Server.Version}}{{range .Server.Components}}, {{.Name}} {{.Version}}{{end}}"))
	image := func(name string, env ...string) string {
		path := filepath.Join(s.dir, "image.tar")
		s.image(t, path, name, "/io/s", env...)
		docker(t, "load", "--input", path)
		return docker(t, "image", "inspect", "--format", "{{.Id}}", name)
	}
	one, two := image("writ.test/one:1", "MADE=one"), image("writ.test/two:1", "MADE=two")
	run := func(image string, args ...string) *container {
		c := s.container(t)
		args = append([]string{"run", "--detach", "--network=none", "--volume=" + c.dir + ":/io", "--volume=" + filepath.Dir(s.node.socket) + ":" + socketDir + ":ro",
			"--env=SPIFFE_ENDPOINT_SOCKET=unix://" + socketDir + "/api.sock"}, args...)
		c.id = docker(t, append(args, image)...)
		return c
	}
	s.entries(t, map[string][]string{
		"/label": {"docker:label:app:web"}, "/env": {"docker:env:STAGE=prod"}, "/made": {"docker:env:MADE=one"},
		"/image": {"docker:image_id:writ.test/one:1"}, "/digest": {"docker:image_digest:" + one}, "/digest2": {"docker:image_digest:" + two},
		"/both": {"docker:label:app:web", "docker:label:tier:a:b"},
	})
	web := run("writ.test/one:1", "--label=app=web", "--label=tier=a:b", "--env=STAGE=prod")
	other := run("writ.test/two:1", "--label=app=other", "--env=STAGE=test")
	plain := run("writ.test/two:1", "--label=app=web")
	all := []string{"/label", "/env", "/made", "/image", "/digest", "/both"}
	web.begins(t, s)
	t.Run("selectors", func(t *testing.T) {
		web.wants(t, all...)
		other.wants(t, "/digest2")
		plain.wants(t, "/digest2", "/label")
	})
	t.Run("a container that pretends", func(t *testing.T) {
		liar := run("writ.test/two:1", "--label=app=liar", "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined")
		liar.wants(t, "/digest2")
		liar.got(t, liar.ask(t, "pretend docker/"+web.id), "/digest2")
	})
	s.lies(t, web, other, all...)
	s.outages(t, web, all...)
}

const containerdConf = `version = 2
root = %[1]q
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
  address = %[2]q
`

func testContainerd(t *testing.T, s *site) {
	socket, conf := filepath.Join(s.dir, "containerd.sock"), filepath.Join(s.dir, "containerd.toml")
	check(t, os.WriteFile(conf, fmt.Appendf(nil, containerdConf, filepath.Join(s.dir, "data"), socket), 0o600))
	s.start(t, hostConfig{Network: true, Engines: [][]string{{"containerd", "--config", conf}}}, fmt.Sprintf("{containerd: {socket: %q, namespaces: [default, prod]}}", socket))
	ctr := func(t *testing.T, namespace string, args ...string) string {
		t.Helper()
		return s.run(t, append([]string{"ctr", "--address", socket, "--namespace", namespace}, args...)...)
	}
	t.Log(ctr(t, "default", "version"))
	for _, name := range []string{"writ.test/one:1", "writ.test/two:1"} {
		path := filepath.Join(s.dir, "image.tar")
		s.image(t, path, name, "/io/s", "MADE="+name)
		for _, namespace := range []string{"default", "prod", "hidden"} {
			ctr(t, namespace, "images", "import", path)
		}
	}
	run := func(namespace, image, id string, args ...string) *container {
		c := s.container(t)
		c.id = id
		// Shares of the processor are ctr's default, and version 2 may have no such thing.
		args = append([]string{"run", "--detach", "--null-io", "--cpu-shares=0", "--mount", "type=bind,src=" + c.dir + ",dst=/io,options=rbind:rw",
			"--mount", "type=bind,src=" + filepath.Dir(s.node.socket) + ",dst=" + socketDir + ",options=rbind:ro",
			"--env", "SPIFFE_ENDPOINT_SOCKET=unix://" + socketDir + "/api.sock"}, args...)
		ctr(t, namespace, append(args, image, c.id)...)
		return c
	}
	s.entries(t, map[string][]string{
		"/label": {"containerd:label:app:web"}, "/image": {"containerd:image:writ.test/one:1"},
		"/default": {"containerd:namespace:default"}, "/prod": {"containerd:namespace:prod"}, "/hidden": {"containerd:namespace:hidden"},
		"/both": {"containerd:namespace:prod", "containerd:label:app:web"},
	})
	id := func() string { // as nerdctl makes them
		id := make([]byte, 32)
		rand.Read(id)
		return hex.EncodeToString(id)
	}
	web := run("default", "writ.test/one:1", id(), "--label", "app=web")
	other := run("default", "writ.test/two:1", id(), "--label", "app=other")
	prod := run("prod", "writ.test/two:1", id(), "--label", "app=web")
	hidden := run("hidden", "writ.test/one:1", id(), "--label", "app=web")
	all := []string{"/label", "/image", "/default"}
	web.begins(t, s)
	t.Run("selectors", func(t *testing.T) {
		web.wants(t, all...)
		other.wants(t, "/default")
		prod.wants(t, "/prod", "/label", "/both")
	})
	t.Run("a namespace that is not named", func(t *testing.T) { hidden.wants(t) })
	t.Run("a container of the same name in another namespace", func(t *testing.T) {
		run("prod", "writ.test/two:1", web.id).wants(t, "/prod")
		run("hidden", "writ.test/two:1", web.id).wants(t)
	})
	t.Run("a container that pretends", func(t *testing.T) {
		liar := run("default", "writ.test/two:1", id(), "--privileged")
		liar.wants(t, "/default")
		liar.got(t, liar.ask(t, "pretend default/"+web.id), "/default")
	})
	s.lies(t, web, other, all...)
	s.outages(t, web, all...)
}

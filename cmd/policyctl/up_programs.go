package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/proxy"
)

// programs are the paths of what up starts.
type programs struct{ policyctl, writd, agent, sidecar string }

// findPrograms looks beside self, then in PATH.
func findPrograms(self string) (programs, error) {
	p := programs{policyctl: self}
	var missing []string
	for name, to := range map[string]*string{"writd": &p.writd, "writ-agent": &p.agent, "writ-sidecar": &p.sidecar} {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := exec.LookPath(beside); err == nil {
			*to = beside
			continue
		}
		found, err := exec.LookPath(name)
		if err != nil {
			missing = append(missing, name)
			continue
		}
		if *to, err = filepath.Abs(found); err != nil {
			return p, err
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return p, fmt.Errorf("no %s beside %s or in PATH: build all four programs (make build), or add their directory to PATH", strings.Join(missing, ", "), self)
	}
	return p, nil
}

// callable is how a person at this prompt starts the program: by its name
// where PATH finds it, otherwise by its path.
func callable(program string) string {
	name := filepath.Base(program)
	if found, err := exec.LookPath(name); err == nil {
		if abs, err := filepath.Abs(found); err == nil && abs == program {
			return name
		}
	}
	return display(program)
}

// linkSidecar puts the sidecar's program where only this service's sidecar
// runs from, so that its path tells it from the others, and returns the path.
func (d upDir) linkSidecar(program, service string) (string, error) {
	dir := d.path("sidecars", service)
	link := filepath.Join(dir, "writ-sidecar")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	source, err := os.Stat(program)
	if err != nil {
		return "", err
	}
	if have, err := os.Stat(link); err == nil {
		sameCopy := have.Size() == source.Size() && have.ModTime().Equal(source.ModTime())
		if os.SameFile(have, source) || sameCopy {
			return link, nil
		}
	}
	tmp := link + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	// A link needs no space and is instant. Across filesystems, or where the
	// kernel protects hard links of other users' files, it fails.
	if err := os.Link(program, tmp); err != nil {
		if err := copyProgram(program, tmp, source); err != nil {
			return "", fmt.Errorf("copy the sidecar program: %w", err)
		}
	}
	return link, os.Rename(tmp, link)
}

func copyProgram(from, to string, info os.FileInfo) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Close()); err != nil {
		return err
	}
	// The time of the source says later whether the copy is still current.
	return os.Chtimes(to, time.Time{}, info.ModTime())
}

// configs writes the configuration files of all programs. They are what an
// administrator would write by hand for the same mesh.
func (u *upRun) configs() error {
	writd := writdconf.Default()
	writd.TrustDomain = u.mesh.TrustDomain
	writd.DataDir = string(u.dir)
	writd.IssuerListen = u.ports.address(useIssuer)
	writd.ControlListen = u.ports.address(useControl)
	writd.PublisherKeys = []string{u.dir.path("publisher", "public.pem")}
	// Everything comes from one address here, after a restart all at once.
	writd.AttestRate = 100
	writd.Drain = writdStop / 2
	if u.mesh.CATTL != 0 {
		writd.CATTL = u.mesh.CATTL
	}
	if u.mesh.SVIDTTL != 0 {
		writd.SVIDTTL = u.mesh.SVIDTTL
	}
	if err := writeConfig(u.dir.path("run", "writd.yaml"), writd); err != nil {
		return err
	}

	node := agent.Default()
	node.TrustDomain = u.mesh.TrustDomain
	node.ServerAddress = u.ports.address(useIssuer)
	node.TrustBundle = u.dir.path("public", "bundle.pem")
	node.JoinTokenFile = u.tokenFile()
	node.DataDir = u.dir.path("agent")
	node.Socket = u.agentSocket()
	if err := writeConfig(u.dir.path("run", "agent.yaml"), node); err != nil {
		return err
	}
	for i := range u.mesh.Services {
		s := &u.mesh.Services[i]
		if err := writeConfig(u.sidecarConfig(s.Name), u.sidecar(s)); err != nil {
			return err
		}
	}
	return nil
}

func (u *upRun) tokenFile() string   { return u.dir.path("run", "token", "join") }
func (u *upRun) agentSocket() string { return u.dir.path("run", "agent", "agent.sock") }
func (u *upRun) sidecarConfig(service string) string {
	return u.dir.path("sidecars", service, "sidecar.yaml")
}

// sidecar is the configuration of a service's sidecar.
func (u *upRun) sidecar(s *mesh.Service) proxy.Config {
	c := proxy.Default()
	c.TrustDomain = u.mesh.TrustDomain
	c.Service = s.Name
	// Where the path is too long for a socket, the agent serves a shorter one.
	c.WorkloadAPI = "unix://" + unixsock.Path(u.agentSocket())
	c.Admin = u.ports.address(useAdmin(s.Name))
	c.Drain = sidecarStop / 2
	c.Control.Address = u.ports.address(useControl)
	c.Policy.Keys = []string{u.dir.path("public", "decision.pem")}
	c.Policy.Dir = u.dir.path("sidecars", s.Name, "policy")
	c.Policy.AllowOutside = u.mesh.AllowOutside
	c.Audit.Dir = u.dir.path("sidecars", s.Name, "spool")
	c.Audit.Headers = u.mesh.Record.Headers
	c.Audit.Query = u.mesh.Record.Query
	if s.Listens() {
		c.Inbound = &proxy.Inbound{Listen: u.ports.address(useInbound(s.Name)), App: s.App(), Protocol: s.Protocol}
	}
	for _, up := range s.Upstreams {
		target := u.mesh.Service(up.Service)
		c.Upstreams = append(c.Upstreams, proxy.Upstream{
			Name: up.Service, Listen: loopback(up.Port), Address: u.ports.address(useInbound(up.Service)),
			SPIFFEID: target.SPIFFEID, Protocol: target.Protocol,
		})
	}
	return c
}

// writeConfig writes a configuration file, without the keys that have no
// value: to give an empty one is an error, to leave it out is not.
func writeConfig(path string, config any) error {
	var doc yaml.Node
	if err := doc.Encode(config); err != nil {
		return err
	}
	prune(&doc)
	var out bytes.Buffer
	out.WriteString("# Written by policyctl up at each start.\n")
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&doc), enc.Close()); err != nil {
		return err
	}
	return writeFile(path, out.Bytes())
}

func prune(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		for _, item := range n.Content {
			prune(item)
		}
		return
	}
	var kept []*yaml.Node
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		prune(value)
		empty := value.Kind == yaml.ScalarNode && (value.Tag == "!!null" || value.Value == "" || value.Value == "0" || value.Value == "0s")
		if value.Kind != yaml.ScalarNode && len(value.Content) == 0 {
			empty = true
		}
		if !empty {
			kept = append(kept, key, value)
		}
	}
	n.Content = kept
}

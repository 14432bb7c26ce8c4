package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

// publisherKey opens the key that signs the policy sources of this mesh; it is
// made at the first start. It lies apart from the control plane's keys: a
// publisher is somebody else.
func (u *upRun) publisherKey() error {
	store, err := keys.OpenDisk(u.dir.path("publisher"))
	if err != nil {
		return err
	}
	if u.publisher, err = keys.Ensure(store, "publisher", keys.P256); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(u.publisher.Public())
	if err != nil {
		return err
	}
	return writeFile(u.dir.path("publisher", "public.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// catalogueFile is where the bundle says which services there are. It comes
// from the mesh file, so a policy directory must not have one.
const catalogueFile = "writ/services/data.json"

// policySources are the policy directory and the catalogue.
func (u *upRun) policySources() (bundle.Content, error) {
	content, err := bundle.ReadDir(u.mesh.Policy)
	if err != nil {
		return nil, fmt.Errorf("policy directory %s: %w", u.mesh.Policy, err)
	}
	if _, there := content.File(catalogueFile); there {
		return nil, fmt.Errorf("%s: services are described by the mesh file", filepath.Join(u.mesh.Policy, catalogueFile))
	}
	if file, line, column := content.Locate("writ", "outside"); file != "" && !u.mesh.AllowOutside {
		return nil, policy.Refused{{File: display(filepath.Join(u.mesh.Policy, file)), Line: line, Column: column, Code: policy.ProblemCatalogue,
			Message: "the sidecars would refuse policy that looks outside of its input: write allow_outside: true in the mesh file"}}
	}
	data, err := json.Marshal(catalogue(u.mesh))
	if err != nil {
		return nil, err
	}
	content = append(content, bundle.File{Path: catalogueFile, Content: data})
	slices.SortFunc(content, func(x, y bundle.File) int { return strings.Compare(x.Path, y.Path) })
	return content, nil
}

// catalogueEntry is data.writ.services[name].
type catalogueEntry struct {
	SPIFFEIDs    []string `json:"spiffe_ids"`
	Mode         string   `json:"mode"`
	ObserveUntil string   `json:"observe_until,omitempty"`
	Path         string   `json:"path"`
}

func catalogue(m *mesh.Mesh) map[string]catalogueEntry {
	all := map[string]catalogueEntry{}
	for _, s := range m.Services {
		// A client decides nothing, but has a name that policy may ask for.
		e := catalogueEntry{SPIFFEIDs: []string{s.SPIFFEID}, Mode: mesh.Enforce, Path: "strict"}
		if s.Listens() {
			e.Mode, e.Path = s.Mode, s.Path
		}
		if e.Mode == mesh.Observe {
			e.ObserveUntil = s.ObserveUntil.Format(time.RFC3339)
		}
		all[s.Name] = e
	}
	return all
}

// pushPolicy puts the policy directory in force. Findings about the sources
// are a policy.Refused; whatever was in force stays.
func (u *upRun) pushPolicy(ctx context.Context) (*policyv1.PushResponse, error) {
	content, err := u.policySources()
	if err != nil {
		return nil, err
	}
	signatures, err := content.Sign(u.publisher, bundle.ScopeSources)
	if err != nil {
		return nil, err
	}
	archive, err := content.Archive(signatures)
	if err != nil {
		return nil, err
	}
	resp, err := policyv1.NewAdminClient(u.conn).Push(ctx, &policyv1.PushRequest{Bundle: archive, Message: "policyctl up: " + u.mesh.Policy})
	if err != nil {
		return nil, fmt.Errorf("push policy: %w", rpcError(err))
	}
	if len(resp.GetProblems()) == 0 {
		return resp, nil
	}
	var refused policy.Refused
	for _, p := range resp.GetProblems() {
		file := p.GetFile()
		if file != "" && file != catalogueFile {
			file = display(filepath.Join(u.mesh.Policy, file))
		}
		refused = append(refused, policy.Problem{File: file, Line: int(p.GetLine()), Column: int(p.GetColumn()), Code: p.GetCode(), Message: p.GetMessage()})
	}
	return nil, refused
}

// inForce reports whether the control plane has a revision to decide by.
func (u *upRun) inForce(ctx context.Context) bool {
	resp, err := policyv1.NewStatusClient(u.conn).Get(ctx, &policyv1.StatusRequest{})
	return err == nil && resp.GetRevision() != nil
}

// statusInterval is the time between two looks at who runs which revision.
const statusInterval = 10 * time.Millisecond

// enforced waits until every sidecar runs rev or a newer revision. A sidecar
// that says why it refused it ends the wait.
func (u *upRun) enforced(ctx context.Context, rev *policyv1.Revision) error {
	client := policyv1.NewStatusClient(u.conn)
	for {
		resp, err := client.Get(ctx, &policyv1.StatusRequest{})
		if err != nil {
			return fmt.Errorf("status: %w", rpcError(err))
		}
		missing, err := u.behind(resp, rev)
		if err != nil || len(missing) == 0 {
			return err
		}
		timer := time.NewTimer(statusInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("policy is not yet in force at %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
		}
	}
}

// behind are the services whose sidecars do not run rev yet.
func (u *upRun) behind(resp *policyv1.StatusResponse, rev *policyv1.Revision) ([]string, error) {
	runs := map[string]*policyv1.Component{}
	for _, c := range resp.GetComponents() {
		if c.GetKind() == "sidecar" && c.GetConnected() {
			runs[c.GetSpiffeId()] = c
		}
	}
	var missing []string
	for _, s := range u.mesh.Services {
		c := runs[s.SPIFFEID]
		if c.GetRefused() != "" {
			return nil, fmt.Errorf("the sidecar of %s refused the policy: %s", s.Name, c.GetRefused())
		}
		have := policy.Revision{Epoch: c.GetRevision().GetEpoch(), Number: c.GetRevision().GetNumber()}
		want := policy.Revision{Epoch: rev.GetEpoch(), Number: rev.GetNumber()}
		if want.Newer(have) {
			missing = append(missing, s.Name)
		}
	}
	return missing, nil
}

// display is path as a person would write it from here.
func display(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}

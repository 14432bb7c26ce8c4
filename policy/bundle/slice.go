package bundle

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
)

// Slice is the part of a revision that one workload needs: the rules and
// catalogue entries of the services that have its SPIFFE ID, all guardrails
// and shared packages, and the data.
type Slice struct {
	Revision policy.Revision
	// Activated is when the control plane put the revision in force.
	Activated time.Time
	SPIFFEID  spiffeid.ID
	Services  []string
	Content   Content
	// Catalogue is what Content has of the catalogue.
	Catalogue Catalogue
	// Program is the compiled form of Content, as policy/program encodes it; nil
	// when there is none. It is under the same signature.
	Program []byte
	// Evaluate is that of Sources; a slice from the control plane carries no
	// Program instead.
	Evaluate bool
}

// manifest is the .manifest of a slice. What the slice is stands in it, and so
// under the signature.
type manifest struct {
	Revision    string    `json:"revision"`
	Roots       []string  `json:"roots"`
	RegoVersion int       `json:"rego_version"`
	Metadata    sliceMeta `json:"metadata"`
}

type sliceMeta struct {
	Writ sliceInfo `json:"writ"`
}

type sliceInfo struct {
	Epoch        uint64   `json:"epoch"`
	Number       uint64   `json:"number"`
	SourceDigest string   `json:"source_digest"`
	Services     []string `json:"services"`
	SPIFFEID     string   `json:"spiffe_id"`
	// Nanoseconds since the Unix epoch, as text: readers of JSON may round a
	// number of this size.
	Activated int64 `json:"activated,string"`
}

// SliceConfig says what to cut.
type SliceConfig struct {
	Revision  policy.Revision
	Activated time.Time
	SPIFFEID  spiffeid.ID
}

// Cutter cuts the slices of one content.
type Cutter struct {
	content   Content
	data      map[string]any
	catalogue Catalogue
	// services of each file with rules; nil is for all.
	services map[string][]string
	// outside are the builtins of OutsideBuiltins that each file names.
	outside map[string][]string
}

// NewCutter reads a content that has no problems.
func NewCutter(c Content) (*Cutter, error) {
	data, problems := c.Data()
	cat, more := c.Catalogue(data)
	problems = append(append(problems, more...), c.SliceProblems(data)...)
	if len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	cutter := &Cutter{content: c, data: data, catalogue: cat, services: map[string][]string{}, outside: map[string][]string{}}
	written, problems := c.Rules(data)
	if len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	for _, f := range written.Files {
		cutter.services[f.Path] = f.Services
	}
	for _, f := range c {
		if !f.IsModule() || f.IsTest() {
			continue
		}
		module, err := ast.ParseModuleWithOpts(f.Path, string(f.Content), ast.ParserOptions{RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, fmt.Errorf("cut policy: %w", err)
		}
		cutter.outside[f.Path] = looksOutside(module)
		cutter.services[f.Path] = nil
		if service := ServiceOf(module.Package.Path); service != "" {
			cutter.services[f.Path] = []string{service}
		}
	}
	return cutter, nil
}

// Cut takes the slice of a SPIFFE ID. A workload that is no service gets the
// guardrails and an empty catalogue.
func (c *Cutter) Cut(cfg SliceConfig) (*Slice, error) {
	s := &Slice{Revision: cfg.Revision, Activated: cfg.Activated, SPIFFEID: cfg.SPIFFEID, Services: []string{}}
	for _, name := range slices.Sorted(maps.Keys(c.catalogue.Services)) {
		if slices.Contains(c.catalogue.Services[name].SPIFFEIDs, cfg.SPIFFEID.String()) {
			s.Services = append(s.Services, name)
		}
	}
	var outside []string
	for _, f := range c.content {
		services, decides := c.services[f.Path]
		if decides && (len(services) == 0 || slices.ContainsFunc(services, func(name string) bool { return slices.Contains(s.Services, name) })) {
			s.Content = append(s.Content, f)
			outside = append(outside, c.outside[f.Path]...)
		}
	}
	s.Catalogue = c.catalogue.of(s.Services, outside)
	doc, err := json.Marshal(sliceData(c.data, s.Services, outside))
	if err != nil {
		return nil, fmt.Errorf("cut slice of %s: %w", cfg.SPIFFEID, err)
	}
	s.Content = append(s.Content, File{"data.json", doc})
	slices.SortFunc(s.Content, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return s, nil
}

// ServiceOf is the service of a package data.services[name], "" for others.
func ServiceOf(pkg ast.Ref) string {
	if len(pkg) < 3 || !pkg[1].Equal(ast.StringTerm("services")) {
		return ""
	}
	name, _ := pkg[2].Value.(ast.String)
	return string(name)
}

// sliceData is data with only the given services and builtins in data.writ.
func sliceData(data map[string]any, services, outside []string) map[string]any {
	out := maps.Clone(data)
	writ, _ := data["writ"].(map[string]any)
	keep := func(kind string, wanted func(name string, entry map[string]any) bool) map[string]any {
		kept := map[string]any{}
		entries, _ := writ[kind].(map[string]any)
		for name, value := range entries {
			if entry, _ := value.(map[string]any); wanted(name, entry) {
				kept[name] = value
			}
		}
		return kept
	}
	kept := map[string]any{
		"services": keep("services", func(name string, _ map[string]any) bool { return slices.Contains(services, name) }),
		"break_glass": keep("break_glass", func(_ string, entry map[string]any) bool {
			service, _ := entry["service"].(string)
			return slices.Contains(services, service)
		}),
	}
	// A slice says what it may ask outside where it would, and nowhere else: an
	// enforcement point that may not refuses it.
	if entries := keep("outside", func(name string, _ map[string]any) bool { return slices.Contains(outside, name) }); len(entries) > 0 {
		kept["outside"] = entries
	}
	out["writ"] = kept
	return out
}

// SliceProblems are what keeps slices of the content from being opened where
// they are needed: data is within the limits of a file, and all together within
// those of a content. It looks at the widest slice, of a workload that is every
// service. Data is what Data returned.
func (c Content) SliceProblems(data map[string]any) []policy.Problem {
	doc, err := json.Marshal(data)
	if err != nil {
		return []policy.Problem{{Code: policy.ProblemParse, Message: fmt.Sprintf("data: %v", err)}}
	}
	if len(doc) > MaxFileBytes {
		return []policy.Problem{{Code: policy.ProblemLimit, Message: fmt.Sprintf(
			"data: %d bytes of JSON in all: a slice is one document, of at most %d", len(doc), MaxFileBytes)}}
	}
	// The manifest and the program are the other files that a slice has of its
	// own. The manifest's list of services is as long as the data at most.
	files, size := 3, 2*len(doc)+MaxFileBytes+1024
	for _, f := range c {
		if f.IsModule() && !f.IsTest() || f.IsRules() {
			files++
			size += len(f.Content)
		}
	}
	if files > MaxFiles || size > MaxContentBytes {
		return []policy.Problem{{Code: policy.ProblemLimit, Message: fmt.Sprintf(
			"a slice could have %d files and %d bytes: at most %d and %d", files, size, MaxFiles, MaxContentBytes)}}
	}
	return nil
}

// Seal signs the slice with the decision key and writes it as an OPA bundle. It
// opens what it wrote, so that a slice that no workload would open is an error
// here.
func (s *Slice) Seal(key crypto.Signer) ([]byte, error) {
	data, err := s.seal(key)
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("seal slice: want an ECDSA key, got %T", key.Public())
	}
	keys, err := NewKeys(public)
	if err != nil {
		return nil, fmt.Errorf("seal slice: %w", err)
	}
	if _, err := OpenSlice(data, keys, s.SPIFFEID); err != nil {
		return nil, fmt.Errorf("seal slice: it would not open: %w", err)
	}
	return data, nil
}

func (s *Slice) seal(key crypto.Signer) ([]byte, error) {
	m, err := json.Marshal(manifest{
		Revision:    s.Revision.String(),
		Roots:       []string{""},
		RegoVersion: 1,
		Metadata: sliceMeta{sliceInfo{
			Epoch: s.Revision.Epoch, Number: s.Revision.Number, SourceDigest: hex.EncodeToString(s.Revision.Digest[:]),
			Services: s.Services, SPIFFEID: s.SPIFFEID.String(), Activated: s.Activated.UnixNano(),
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("seal slice: %w", err)
	}
	files := append(Content{{manifestFile, m}}, s.Content...)
	if s.Program != nil {
		files = append(files, File{programFile, s.Program})
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	signatures, err := files.Sign(key, ScopeSlice)
	if err != nil {
		return nil, fmt.Errorf("seal slice: %w", err)
	}
	return files.Archive(signatures)
}

// OpenSlice verifies a sealed slice for the workload id: signed as a slice by
// one of keys, made for id, and with no service that is not id's. It does not
// judge the age; compare Revision with what is in force.
func OpenSlice(data []byte, keys Keys, id spiffeid.ID) (*Slice, error) {
	a, err := readArchive(data, func(f File) bool { return f.isSource() || f.Path == programFile })
	if err != nil {
		return nil, err
	}
	if _, err := a.Verify(keys, ScopeSlice); err != nil {
		return nil, err
	}
	s, err := readManifest(a.Content)
	if err != nil {
		return nil, fmt.Errorf("policy slice: .manifest: %w", err)
	}
	if s.SPIFFEID != id {
		return nil, fmt.Errorf("policy slice is for %s, not for %s", s.SPIFFEID, id)
	}
	docs, problems := s.Content.Data()
	cat, more := s.Content.Catalogue(docs)
	if problems = append(problems, more...); len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	for name, service := range cat.Services {
		if !slices.Contains(service.SPIFFEIDs, id.String()) {
			return nil, fmt.Errorf("policy slice holds service %s, which is not a service of %s", name, id)
		}
	}
	if want := slices.Sorted(maps.Keys(cat.Services)); !slices.Equal(want, s.Services) {
		return nil, fmt.Errorf("policy slice names services %v and holds %v", s.Services, want)
	}
	s.Catalogue = cat
	return s, nil
}

func readManifest(c Content) (*Slice, error) {
	raw, ok := c.File(manifestFile)
	if !ok {
		return nil, errors.New("missing")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var m manifest
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	info := m.Metadata.Writ
	digest, err := hex.DecodeString(info.SourceDigest)
	if err != nil || len(digest) != 32 {
		return nil, errors.New("source_digest is not a SHA-256")
	}
	if info.Epoch == 0 || info.Number == 0 {
		return nil, errors.New("no revision")
	}
	id, err := spiffeid.FromString(info.SPIFFEID)
	if err != nil {
		return nil, err
	}
	program, _ := c.File(programFile)
	return &Slice{
		Revision:  policy.Revision{Epoch: info.Epoch, Number: info.Number, Digest: [32]byte(digest)},
		Activated: time.Unix(0, info.Activated).UTC(),
		SPIFFEID:  id,
		Services:  info.Services,
		Content:   slices.DeleteFunc(slices.Clone(c), func(f File) bool { return f.Path == manifestFile || f.Path == programFile }),
		Program:   program,
	}, nil
}

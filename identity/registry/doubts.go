package registry

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/identity/template"
)

// kinds are the selectors that attestors of Writ give, by type. Node attestors
// are in it, for entries that name nodes.
var kinds = map[string][]string{
	"unix":       {"uid", "user", "gid", "group", "supplementary_gid", "supplementary_group", "path", "sha256"},
	"systemd":    {"id", "fragment_path"},
	"docker":     {"label", "env", "image_id", "image_digest"},
	"containerd": {"namespace", "image", "label"},
	"k8s": {"ns", "sa", "node-name", "pod-name", "pod-uid", "pod-label", "pod-owner", "pod-owner-uid", "pod-image", "pod-image-count",
		"pod-init-image", "pod-init-image-count", "container-name", "container-image"},
	"x509pop": {"subject", "ca", "serialnumber", "san"},
	"k8s_psat": {"cluster", "agent_ns", "agent_sa", "agent_pod_name", "agent_pod_uid", "agent_pod_label", "agent_node_ip", "agent_node_name",
		"agent_node_uid", "agent_node_label"},
	aliasType: nil, // anything goes: an ID
}

const aliasType = "spiffe_id"

// interpreter matches the names of programs that run what they are given, with
// the versions that distributions add.
var interpreter = regexp.MustCompile(`^(?:a?sh|bash|dash|zsh|ksh|mksh|fish|tcsh|csh|busybox|env|python|pypy|perl|ruby|node|nodejs|deno|bun|java|php|php-fpm|lua|luajit|tclsh|pwsh|dotnet|Rscript|guile|gawk|mawk|awk|beam\.smp|mono|wine|qemu-[a-z0-9_]+|ld-linux[a-z0-9_-]*\.so)(?:[-.]?[0-9][0-9.]*)?$`)

// IsInterpreter says whether a file's name is that of a program that runs
// whatever it is given.
func IsInterpreter(file string) bool { return interpreter.MatchString(path.Base(file)) }

// Doubts says what is probably not meant by an entry's selectors: it is valid,
// and proves less than it seems to.
func Doubts(selectors []Selector) []string {
	var doubts []string
	userOnly := len(selectors) > 0
	for _, s := range selectors {
		if doubt := doubtOf(s); doubt != "" {
			doubts = append(doubts, doubt)
		}
		kind, _, _ := strings.Cut(s.Value, ":")
		if s.Type != "unix" || kind == "path" || kind == "sha256" {
			userOnly = false
		}
	}
	if userOnly {
		doubts = append(doubts, "the selectors name only a user or group: every process of it matches")
	}
	return doubts
}

func doubtOf(s Selector) string {
	kind, value, _ := strings.Cut(s.Value, ":")
	if unknown := unknownKind(s.Type, kind); unknown != "" {
		return fmt.Sprintf("selector %s: %s", text(s), unknown)
	}
	if never := neverMatches(s.Type, kind, value); never != "" {
		return fmt.Sprintf("selector %s: no process matches: %s", text(s), never)
	}
	if s.Type == "unix" && kind == "path" && IsInterpreter(value) {
		return fmt.Sprintf("selector %s: an interpreter runs any script, so every script of whoever may run it matches", text(s))
	}
	return ""
}

// hexDigest matches a SHA-256 as the attestors write it.
var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// neverMatches says what form the values of a kind have that this one has not, or
// nothing.
func neverMatches(typ, kind, value string) string {
	switch typ + ":" + kind {
	case "unix:uid", "unix:gid", "unix:supplementary_gid":
		if n, err := strconv.ParseUint(value, 10, 32); err != nil || strconv.FormatUint(n, 10) != value {
			return "want a number, as in " + typ + ":" + kind + ":1000; names are unix:user and unix:group"
		}
	case "unix:sha256":
		if !hexDigest.MatchString(value) {
			return "want 64 hexadecimal digits, in lower case"
		}
	case "unix:path", "systemd:fragment_path":
		if !path.IsAbs(value) || path.Clean(value) != value {
			return "want an absolute path, without . or .. or a slash too many"
		}
	case "unix:user", "unix:group", "unix:supplementary_group", "systemd:id":
		if value == "" {
			return "the value is missing"
		}
	}
	return ""
}

// unknownKind says that no attestor gives selectors of a kind, or nothing.
func unknownKind(typ, kind string) string {
	switch known, ok := kinds[typ]; {
	case !ok:
		return fmt.Sprintf("no attestor of Writ gives selectors of type %.100q (there are %s)", typ, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	case known != nil && !slices.Contains(known, kind):
		return fmt.Sprintf("no attestor of Writ gives %.100s:%.100s (of %[1]s there are %[3]s)", typ, kind, strings.Join(known, ", "))
	}
	return ""
}

// ofNodes are the types of selectors that agents have, not workloads.
var ofNodes = []string{"x509pop", "k8s_psat", aliasType}

// several are kinds of which a process may have more than one, and unfit those
// whose values have characters that no part of a name may have.
var (
	several = []string{"unix:gid", "unix:group", "unix:supplementary_gid", "unix:supplementary_group", "k8s:pod-owner", "k8s:pod-owner-uid", "docker:env"}
	unfit   = []string{"unix:path", "systemd:fragment_path", "docker:image_id", "docker:image_digest", "containerd:image", "k8s:pod-image", "k8s:pod-init-image", "k8s:container-image"}
)

// TemplateDoubts says what is probably not meant by a template: it is valid, and
// gives less than it seems to.
func TemplateDoubts(r *template.Rule) []string {
	var doubts []string
	for _, text := range r.Selectors {
		typ, value, _ := strings.Cut(text, ":")
		if doubt := doubtOf(Selector{Type: typ, Value: value}); doubt != "" {
			doubts = append(doubts, doubt)
		}
	}
	for _, p := range append([]*template.Pattern{r.SPIFFEID}, r.DNSNames...) {
		for _, v := range p.Variables() {
			if doubt := doubtOfVariable(v); doubt != "" {
				doubts = append(doubts, fmt.Sprintf("variable {%.100s}: %s", v, doubt))
			}
		}
	}
	slices.Sort(doubts)
	return slices.Compact(doubts)
}

func doubtOfVariable(v template.Variable) string {
	typ, rest, _ := strings.Cut(v.Selector, ":")
	kind, _, _ := strings.Cut(rest, ":")
	if unknown := unknownKind(typ, kind); unknown != "" {
		return unknown
	}
	switch whole := typ + ":" + kind; {
	case v.Agent != slices.Contains(ofNodes, typ):
		if v.Agent {
			return "workloads have it, and agents do not: leave out agent:"
		}
		return fmt.Sprintf("agents have it, and workloads do not: write {agent:%.100s}", v.Selector)
	case typ == aliasType || slices.Contains(unfit, whole):
		return "its values have characters that no part of a name may have, so it gives no identity"
	case slices.Contains(several, whole):
		return "a process may have several of them, and gets no identity then"
	}
	return ""
}

// text is a selector as a person writes it, bounded.
func text(s Selector) string { return fmt.Sprintf("%.100s", s.Type+":"+s.Value) }

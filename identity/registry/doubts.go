package registry

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
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
		kind, value, _ := strings.Cut(s.Value, ":")
		known, ok := kinds[s.Type]
		switch {
		case !ok:
			doubts = append(doubts, fmt.Sprintf("selector %s: no attestor of Writ gives selectors of type %q (there are %s)", text(s), s.Type, strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")))
		case known != nil && !slices.Contains(known, kind):
			doubts = append(doubts, fmt.Sprintf("selector %s: no attestor of Writ gives %s:%s (of %s there are %s)", text(s), s.Type, kind, s.Type, strings.Join(known, ", ")))
		case s.Type == "unix" && kind == "path" && IsInterpreter(value):
			doubts = append(doubts, fmt.Sprintf("selector %s: an interpreter runs any script, so every script of whoever may run it matches", text(s)))
		}
		if s.Type != "unix" || kind == "path" || kind == "sha256" {
			userOnly = false
		}
	}
	if userOnly {
		doubts = append(doubts, "the selectors name only a user or group: every process of it matches")
	}
	return doubts
}

// text is a selector as a person writes it, bounded.
func text(s Selector) string { return fmt.Sprintf("%.100s", s.Type+":"+s.Value) }

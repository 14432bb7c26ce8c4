package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	yamlrules "github.com/writ-dev/writ/policy/rules"
)

// warningUnread is the code of a file that looks like policy and is not read.
const warningUnread = "unread"

var (
	looksLikeYAML  = regexp.MustCompile(`\.ya?ml$`)
	looksLikeRules = regexp.MustCompile(`(?m)^(rules|guardrails):`)
)

// unreadFiles warns of files below dir that are passed over because of their
// names, such as orders.rules.yml: what they deny would not be denied. What is
// no directory has none, and neither has what cannot be looked at.
func unreadFiles(dir string) []policy.Problem {
	var warnings []policy.Problem
	_ = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		base := filepath.Base(name)
		switch {
		case err != nil:
			return nil
		case entry.IsDir() && name != dir && strings.HasPrefix(base, "."):
			return fs.SkipDir
		case !entry.Type().IsRegular() || name == dir || !looksLikeYAML.MatchString(base) || base == "data.yaml" || yamlrules.IsFile(base):
			return nil
		}
		want := "data is read from data.yaml and data.json"
		if base != "data.yml" {
			info, err := entry.Info()
			if err != nil || info.Size() > bundle.MaxFileBytes {
				return nil
			}
			if text, err := os.ReadFile(name); err != nil || !looksLikeRules.Match(text) {
				return nil
			}
			want = "rules are read from rules.yaml and files whose names end in .rules.yaml"
		}
		if rel, err := filepath.Rel(dir, name); err == nil {
			warnings = append(warnings, policy.Problem{File: rel, Code: warningUnread, Message: "not read, because of its name: " + want})
		}
		return nil
	})
	return warnings
}

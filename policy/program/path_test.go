package program

import (
	"strings"
	"testing"
)

func TestMatchPath(t *testing.T) {
	for _, tc := range []struct {
		pattern string
		match   string // paths, split as pep.SplitPath does
		differ  string
	}{
		{"/", "/", "/a //"},
		{"/a", "/a", "/ /a/ /a/b /A"},
		{"/a/", "/a/", "/a /a/b"},
		{"/a/b", "/a/b", "/a /a/b/c"},
		{"/a*", "/a /ab", "/b /a/ /"},
		{"/*a", "/a /ba", "/ab"},
		{"/a*a", "/aa /aba", "/a /ab"},
		{"/a*b*c", "/abc /axbxc /abbc", "/ac /acb"},
		{"/a*b*b*c", "/abbc /axbxbxc", "/abc /abbcd"},
		{"/a/*", "/a/b /a/ /a/b/c /a/b/", "/a /b/a"},
		{"/*", "/a /a/b //", "/"},
		{"/*/b", "/a/b //b", "/b /a/b/c"},
		{"/{*}", "/a", "/ // /a/"},
		{"/a/{*}/b", "/a/x/b", "/a/b /a//b /a/x/y/b"},
		{"/{**}", "/ /a /a/b /a/ //", ""},
		{"/a/{**}", "/a /a/ /a/b/c", "/ /b"},
		{"/{**}/a", "/a /b/a /b//a", "/ /a/b"},
		{"/a/{**}/b", "/a/b /a/x/b /a/b/b /a/x/y/b", "/a /b /a/b/c"},
		{"/{**}/*", "/a /a/b", "/"},
		{"/{**}/a/*", "/a/b /x/a/b/c /a/a", "/a /b/a"},
		{"/a//b", "/a//b", "/a/b"},
		{"/%2F", "/%2F", "//"},
	} {
		if err := CheckPathPattern(tc.pattern); err != nil {
			t.Errorf("%s: %v", tc.pattern, err)
		}
		for path := range strings.FieldsSeq(tc.match) {
			if !MatchPath(tc.pattern, segmentsOf(path)) {
				t.Errorf("%s does not match %s", tc.pattern, path)
			}
		}
		for path := range strings.FieldsSeq(tc.differ) {
			if MatchPath(tc.pattern, segmentsOf(path)) {
				t.Errorf("%s matches %s", tc.pattern, path)
			}
		}
	}
}

func segmentsOf(path string) []string {
	if path == "/" {
		return nil
	}
	return strings.Split(path[1:], "/")
}

func TestCheckPathPattern(t *testing.T) {
	for pattern, want := range map[string]string{
		"":             "does not begin with a slash",
		"a":            "does not begin with a slash",
		"/{a}":         "braces",
		"/a{*}":        "braces",
		"/{}":          "braces",
		"/{***}":       "braces",
		"/}":           "braces",
		"/{**}/a/{**}": "more than one {**}",
		"/\xff":        "not valid UTF-8",
	} {
		if err := CheckPathPattern(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", pattern, err, want)
		}
		if MatchPath(pattern, segmentsOf("/a")) {
			t.Errorf("%q matches", pattern)
		}
	}
}

func FuzzMatchPath(f *testing.F) {
	f.Add("/a/{**}/*b*c/*", "/a/x/bcc/d")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if CheckPathPattern(pattern) != nil || !strings.HasPrefix(path, "/") || strings.ContainsRune(path+pattern, '\U0010ffff') || seen(path) != path {
			return
		}
		segments := segmentsOf(path)
		if got, want := MatchPath(pattern, segments), naivePath(pattern, segments); got != want {
			t.Errorf("%q on %q: %v, and as a regular expression %v", pattern, segments, got, want)
		}
	})
}

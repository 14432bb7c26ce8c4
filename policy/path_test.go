package policy_test

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
)

func TestSplitPath(t *testing.T) {
	for _, tc := range []struct {
		raw    string
		double bool
		want   []string
		refuse string
	}{
		{raw: "/", want: []string{}},
		{raw: "/a", want: []string{"a"}},
		{raw: "/a/", want: []string{"a", ""}},
		{raw: "/a/b;v=1/c", want: []string{"a", "b;v=1", "c"}},
		{raw: "/%41/%2F/b%2fc", want: []string{"A", "/", "b/c"}},
		{raw: "/caf%C3%A9/é", want: []string{"café", "é"}},
		{raw: "/a+b/c:d@e!$&'()*,=~", want: []string{"a+b", "c:d@e!$&'()*,=~"}},
		{raw: `/%22quoted"/{x}|^`, want: []string{`"quoted"`, "{x}|^"}},
		{raw: "/...", want: []string{"..."}},
		{raw: "/a.b/.c/d.", want: []string{"a.b", ".c", "d."}},
		{raw: "//", double: true, want: []string{"", ""}},
		{raw: "//a//b", double: true, want: []string{"", "a", "", "b"}},

		{raw: "", refuse: "slash"},
		{raw: "*", refuse: "slash"},
		{raw: "a/b", refuse: "slash"},
		{raw: "http://x/", refuse: "slash"},
		{raw: "/.", refuse: "dot segment"},
		{raw: "/a/./b", refuse: "dot segment"},
		{raw: "/a/..", refuse: "dot segment"},
		{raw: "/../a", refuse: "dot segment"},
		{raw: "/a/%2e%2E/b", refuse: "dot segment"},
		{raw: "/a/%2e", refuse: "dot segment"},
		{raw: "/a/.%2e/b", refuse: "dot segment"},
		{raw: "/a%2F..%2Fb", refuse: "dot segment"},
		{raw: "/a%2f%2e", refuse: "dot segment"},
		{raw: "/a/..;x=1/b", refuse: "dot segment"},
		{raw: "/a/..%3Bx/b", refuse: "dot segment"},
		{raw: "//a", refuse: "empty segment"},
		{raw: "/a//", refuse: "empty segment"},
		{raw: "/a//b", refuse: "empty segment"},
		{raw: "//..", double: true, refuse: "dot segment"},
		{raw: `/a\b`, refuse: "backslash"},
		{raw: "/a%5cb", refuse: "backslash"},
		{raw: "/a%00", refuse: "NUL"},
		{raw: "/a\x00", refuse: "control"},
		{raw: "/a b", refuse: "control"},
		{raw: "/a\tb", refuse: "control"},
		{raw: "/a\x7f", refuse: "control"},
		{raw: "/a#b", refuse: "fragment"},
		{raw: "/a?b", refuse: "question mark"},
		{raw: "/%", refuse: "percent"},
		{raw: "/%4", refuse: "percent"},
		{raw: "/%zz", refuse: "percent"},
		{raw: "/%u0041", refuse: "percent"},
		{raw: "/%c0%ae%c0%ae/", refuse: "UTF-8"},
		{raw: "/%ff", refuse: "UTF-8"},
		{raw: "/\xff", refuse: "UTF-8"},
		{raw: "/%ed%a0%80", refuse: "UTF-8"},
	} {
		t.Run(tc.raw, func(t *testing.T) {
			got, refusal := policy.SplitPath([]string{}, tc.raw, tc.double)
			if tc.refuse != "" {
				if !strings.Contains(refusal, tc.refuse) {
					t.Errorf("segments %q, refusal %q; want refusal with %q", got, refusal, tc.refuse)
				}
				return
			}
			if refusal != "" {
				t.Fatalf("refused: %s", refusal)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseQuery(t *testing.T) {
	for _, tc := range []struct {
		raw    string
		want   policy.MapValues
		refuse string
	}{
		{raw: ""},
		{raw: "a=1&b=2&a=3", want: policy.MapValues{"a": {"1", "3"}, "b": {"2"}}},
		{raw: "a&b=&=c&&", want: policy.MapValues{"a": {""}, "b": {""}, "": {"c"}}},
		{raw: "a=b=c&d=%26%3D%3B", want: policy.MapValues{"a": {"b=c"}, "d": {"&=;"}}},
		{raw: "q=x+y%2Bz", want: policy.MapValues{"q": {"x y+z"}}},
		{raw: `p=a/b?c\d`, want: policy.MapValues{"p": {`a/b?c\d`}}},
		{raw: "a=1;b=2", refuse: "semicolon"},
		{raw: "a=%", refuse: "percent"},
		{raw: "%zz=1", refuse: "percent"},
		{raw: "a=%00", refuse: "NUL"},
		{raw: "a=%ff", refuse: "UTF-8"},
		{raw: "\xff=1", refuse: "UTF-8"},
		{raw: "a=b c", refuse: "control"},
		{raw: "a=b#c", refuse: "fragment"},
	} {
		t.Run(tc.raw, func(t *testing.T) {
			got, refusal := policy.ParseQuery(tc.raw)
			if tc.refuse != "" {
				if !strings.Contains(refusal, tc.refuse) {
					t.Errorf("values %q, refusal %q; want refusal with %q", got, refusal, tc.refuse)
				}
				return
			}
			if refusal != "" {
				t.Fatalf("refused: %s", refusal)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What is accepted, net/url reads in the same way, and nothing that is accepted
// names another path after any number of decodings of slashes and dots.
func FuzzSplitPath(f *testing.F) {
	for _, s := range []string{"/", "/a/b", "/%2e%2e/", "/a%2Fb;x/c", "//", "/\xff", "/%41é", "/a%5c", "/..;/x"} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, raw string, double bool) {
		segments, refusal := policy.SplitPath(nil, raw, double)
		if refusal != "" {
			return
		}
		var parts []string
		for _, s := range segments {
			parts = append(parts, url.PathEscape(s))
			if !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\\") {
				t.Fatalf("%q: segment %q", raw, s)
			}
			for p := range strings.SplitSeq(s, "/") {
				if p == "." || p == ".." {
					t.Fatalf("%q: segment %q", raw, s)
				}
			}
		}
		if again, refusal := policy.SplitPath(nil, "/"+strings.Join(parts, "/"), double); refusal != "" || !cmp.Equal(again, segments) {
			t.Fatalf("%q: %q is read again as %q (%s)", raw, segments, again, refusal)
		}
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			t.Fatalf("%q: net/url refuses what was accepted: %v", raw, err)
		}
		if want := "/" + strings.Join(segments, "/"); u.Path != want {
			t.Fatalf("%q: net/url reads %q, segments %q", raw, u.Path, segments)
		}
	})
}

func FuzzParseQuery(f *testing.F) {
	for _, s := range []string{"a=1&b", "a=%41+b", "%", ";", "=&&=", "é=ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, refusal := policy.ParseQuery(raw)
		if refusal != "" {
			return
		}
		want, err := url.ParseQuery(raw)
		if err != nil {
			t.Fatalf("%q: net/url refuses what was accepted: %v", raw, err)
		}
		if len(want) != len(got) {
			t.Fatalf("%q: %q, net/url reads %q", raw, got, want)
		}
		for k, v := range want {
			if !cmp.Equal(v, got[k]) {
				t.Fatalf("%q: %q, net/url reads %q", raw, got, want)
			}
		}
	})
}

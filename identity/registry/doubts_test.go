package registry

import (
	"strings"
	"testing"
)

func TestDoubts(t *testing.T) {
	for _, tc := range []struct {
		selectors string
		want      string // of the one doubt; empty for none
	}{
		{"unix:uid:1000 unix:path:/usr/local/bin/app", ""},
		{"unix:sha256:" + strings.Repeat("0a", 32), ""},
		{"unix:sha256:abc", "64 hexadecimal digits"},
		{"unix:sha256:" + strings.Repeat("0A", 32), "64 hexadecimal digits"},
		{"unix:uid:abc unix:path:/x", "want a number, as in unix:uid:1000"},
		{"unix:gid:007 unix:path:/x", "want a number"},
		{"unix:uid:4294967296 unix:path:/x", "want a number"},
		{"unix:path:relative", "want an absolute path"},
		{"unix:path:/usr/../bin/app", "want an absolute path"},
		{"unix:user", "the value is missing"},
		{"unix:users:bob", "no attestor of Writ gives unix:users (of unix there are uid, user, gid,"},
		{"systemd:unit:a.service", "(of systemd there are id, fragment_path)"},
		{"systemd:id:app.service", ""},
		{"docker:label:app:web", ""},
		{"k8s:ns:shop k8s:sa:web", ""},
		{"k8s_psat:cluster:prod", ""},
		{"x509pop:subject:cn:n1", ""},
		{"spiffe_id:spiffe://example.org/spire/agent/x/1", ""},
		{"unix:path:/usr/bin/pythonia", ""},
		{"unix:path:/usr/bin/nodelocaldns", ""},
		{"unix:path:/opt/sh/app", ""},
		{"unix:uid:1000", "every process of it"},
		{"unix:user:web unix:gid:7", "every process of it"},
		{"unix:uid:1000 unix:path:/usr/bin/python3.11", "interpreter"},
		{"unix:path:/bin/sh", "interpreter"},
		{"unix:path:/usr/lib/jvm/java-17/bin/java", "interpreter"},
		{"unix:path:/usr/local/bin/node", "interpreter"},
		{"unix:path:/lib64/ld-linux-x86-64.so.2", "interpreter"},
		{"unix:path:/usr/bin/perl5.36.0", "interpreter"},
		{"unix:pid:12", "no attestor of Writ gives unix:pid"},
		{"kubernetes:ns:shop", `of type "kubernetes"`},
		{"k8s:namespace:shop", "no attestor of Writ gives k8s:namespace"},
	} {
		var selectors []Selector
		for f := range strings.FieldsSeq(tc.selectors) {
			kind, value, _ := strings.Cut(f, ":")
			selectors = append(selectors, Selector{Type: kind, Value: value})
		}
		got := Doubts(selectors)
		if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) == 0 || !strings.Contains(got[0], tc.want)) {
			t.Errorf("%s: %q, want %q", tc.selectors, got, tc.want)
		}
	}
	if got := Doubts(nil); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
}

package httppep

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReserved(t *testing.T) {
	for name, want := range map[string]bool{
		"Writ-Source-Id": true, "writ-": true, "WRIT_ANYTHING": true, "writ.source": true, "Writ!x": true,
		"X-Forwarded-Client-Cert": true, "x_forwarded_client_cert": true, "X.Forwarded-Client_Cert": true,
		"X_Forwarded_For": true, "x-forwarded_for": true,
		"X-Forwarded-For": false, "x-forwarded-for": false, "X-Forwarded-Client-Certs": false, "X-Forwarded-Client": false,
		"Writ": false, "Writing-Desk": false, "X-Writ-Source-Id": false, "": false, "X": false, "Host": false,
	} {
		if got := Reserved(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

// Whatever CGI and its descendants fold into the variable of a reserved name is
// reserved.
func FuzzReserved(f *testing.F) {
	for _, s := range []string{"Writ-A", "writ_a", "X-Forwarded-Client-Cert", "X_Forwarded_For", "wr\xfft-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		folded := strings.Map(func(r rune) rune {
			switch {
			case 'a' <= r && r <= 'z':
				return r - 'a' + 'A'
			case 'A' <= r && r <= 'Z' || '0' <= r && r <= '9':
				return r
			}
			return '_'
		}, name)
		want := strings.HasPrefix(folded, "WRIT_") || folded == "X_FORWARDED_CLIENT_CERT" ||
			folded == "X_FORWARDED_FOR" && !strings.EqualFold(name, "x-forwarded-for")
		// Only names that can be on the wire: tokens are ASCII.
		for i := range len(name) {
			if name[i] >= 0x80 {
				return
			}
		}
		if Reserved(name) != want {
			t.Errorf("%q folds to %s: reserved %v", name, folded, Reserved(name))
		}
	})
}

func TestHeaderValues(t *testing.T) {
	h := http.Header{
		"X-User": {"a", "b"}, "Accept": {"*/*"}, "User-Agent": nil, "Writ-Source-Id": {"ours"},
		http.CanonicalHeaderKey("x-" + strings.Repeat("long-", 20)): {"1"},
	}
	v := headerValues{h}
	for name, want := range map[string][]string{
		"x-user": {"a", "b"}, "accept": {"*/*"}, "user-agent": nil, "writ-source-id": nil, "X-User": nil, "absent": nil,
		"x-" + strings.Repeat("long-", 20): {"1"},
	} {
		if got := v.Get(name); !cmp.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	seen := map[string]bool{}
	v.Each(func(name string, _ []string) bool { seen[name] = true; return true })
	if diff := cmp.Diff(map[string]bool{"x-user": true, "accept": true, "x-" + strings.Repeat("long-", 20): true}, seen); diff != "" {
		t.Error(diff)
	}
	n := 0
	v.Each(func(string, []string) bool { n++; return false })
	if n != 1 {
		t.Errorf("Each went on after false: %d", n)
	}
	if allocs := testing.AllocsPerRun(100, func() { v.Get("x-user") }); allocs > 0 {
		t.Errorf("Get allocates %v times", allocs)
	}
}

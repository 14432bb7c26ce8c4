package pep_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/writ-dev/writ/pep"
)

func TestCheckHost(t *testing.T) {
	for host, ok := range map[string]bool{
		"orders": true, "orders.example:8443": true, "ORDERS": true, "127.0.0.1:80": true, "[::1]": true, "[2001:db8::1]:443": true,
		"run%2Forders.sock": true, "a_b": true, "x:65535": true,
		"": false, ":80": false, "orders/secret": false, "orders:": false, "orders:65536": false, "orders:+1": false, "orders:80:80": false,
		"user@orders": false, "[fe80::1%eth0]": false, "[fe80::1%25eth0]:1": false, "[::1": false, "[::1]x": false, "[127.0.0.1]": false,
		"[orders]": false, "örders": false, "orders\xff": false, "or ders": false, "a%2": false, "a%zz": false, "a?b": false, "a#b": false, `a\b`: false,
	} {
		if why := pep.CheckHost(host); (why == "") != ok {
			t.Errorf("%q: %q", host, why)
		}
	}
}

// What is accepted leaves net/http as it came.
func FuzzCheckHost(f *testing.F) {
	for _, s := range []string{"", "orders:80", "[::1]:80", "[fe80::1%25eth0]", "a%2Fb", "ö", "a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if pep.CheckHost(host) != "" {
			return
		}
		r, err := http.NewRequest("GET", "http://upstream/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		var b strings.Builder
		if err := r.Write(&b); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "\r\nHost: "+host+"\r\n") {
			t.Fatalf("%q was sent as %q", host, b.String())
		}
	})
}

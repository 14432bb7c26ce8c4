package bundle_test

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// TestSliceLooksOutside: a slice says what it may ask outside where its rules
// do, and nowhere else.
func TestSliceLooksOutside(t *testing.T) {
	const data = `{"writ": {
		"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}, "payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}},
		"outside": {"http.send": {"hosts": ["risk.example.org"]}, "net.lookup_ip_addr": {"hosts": ["*.example.org"]}, "opa.runtime": {"env": ["REGION"]}}}}`
	for _, tt := range []struct {
		name, orders, shared string
		want                 []string
	}{
		{"nobody", "package services.orders\n\nallow if data.http.send\n", "package http\n\nsend := true\n", nil},
		{"another service", "package services.orders\n\nallow := false\n", "package services.payments\n\nallow if http.send({}).body.ok\n", nil},
		{"a test", "package services.orders\n\nallow := false\n", "", nil},
		{"its own rule", "package services.orders\n\nallow if http.send({}).body.ok\n", "", []string{"http.send"}},
		{"a shared one", "package services.orders\n\nallow := false\n", "package lib\n\nx := {v | some v in net.lookup_ip_addr(input.request.host)}\n\ny := opa.runtime()\n", []string{"net.lookup_ip_addr", "opa.runtime"}},
		{"in the place of a function", "package services.orders\n\nf(_) := 1\n\nallow if x with f as http.send\n\nx if f({})\n", "", []string{"http.send"}},
		{"in brackets", "package services.orders\n\nallow if http[\"send\"]({}).body.ok\n", "", []string{"http.send"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := bundle.Content{
				{Path: "data.json", Content: []byte(data)},
				{Path: "orders.rego", Content: []byte(tt.orders)},
				{Path: "orders_test.rego", Content: []byte("package orders_test\n\ntest_a if http.send({})\n")},
			}
			if tt.shared != "" {
				content = append(content, bundle.File{Path: "shared.rego", Content: []byte(tt.shared)})
			}
			cutter, err := bundle.NewCutter(content)
			if err != nil {
				t.Fatal(err)
			}
			s, err := cutter.Cut(bundle.SliceConfig{Revision: policy.Revision{Epoch: 1, Number: 1}, SPIFFEID: orders})
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Catalogue.Outside.Builtins(); !slices.Equal(got, tt.want) {
				t.Errorf("the catalogue admits %v, want %v", got, tt.want)
			}
			key, keys := newKey(t)
			sealed, err := s.Seal(key)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := bundle.OpenSlice(sealed, keys, orders)
			if err != nil {
				t.Fatal(err)
			}
			if got := opened.Catalogue.Outside.Builtins(); !slices.Equal(got, tt.want) {
				t.Errorf("the slice admits %v, want %v", got, tt.want)
			}
		})
	}
}

// FuzzOrigin: an entry of hosts that is taken admits the URL that it is, and
// nothing by another scheme or port.
func FuzzOrigin(f *testing.F) {
	for _, text := range []string{"risk.example.org", "*.example.org", "http://127.0.0.1:8181", "https://[::1]:443", "a:0", "x@y.z", "[fe80::1%25lo]", "ftp://a.b"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		doc, err := json.Marshal(map[string]any{"writ": map[string]any{"outside": map[string]any{"http.send": map[string]any{"hosts": []string{text}}}}})
		if err != nil {
			t.Skip()
		}
		content := bundle.Content{{Path: "data.json", Content: doc}}
		data, problems := content.Data()
		catalogue, more := content.Catalogue(data)
		if len(problems)+len(more) > 0 {
			return
		}
		origin := catalogue.Outside.HTTP.Origins[0]
		scheme, host, ok := strings.Cut(strings.ToLower(text), "://")
		if !ok {
			scheme, host = "https", scheme
		}
		u, err := url.Parse(scheme + "://" + strings.Replace(host, "*", "a", 1))
		if err != nil || !origin.Admits(u) {
			t.Errorf("%q does not admit %v: %v", text, u, err)
		}
		other := *u
		if other.Host = u.Hostname() + ":1"; strings.Contains(u.Hostname(), ":") {
			other.Host = "[" + u.Hostname() + "]:1"
		}
		if u.Port() != "1" && origin.Admits(&other) {
			t.Errorf("%q admits %v", text, &other)
		}
		if u.Scheme = "ws"; origin.Admits(u) {
			t.Errorf("%q admits %v", text, u)
		}
	})
}

func TestOrigins(t *testing.T) {
	for _, tt := range []struct {
		listed          string
		admits, refuses []string
	}{
		{"risk.example.org",
			[]string{"https://risk.example.org", "https://RISK.example.org./x?y", "https://risk.example.org:443/"},
			[]string{"http://risk.example.org", "http://risk.example.org:443", "https://risk.example.org:8443", "https://a.risk.example.org", "https://xrisk.example.org", "https://risk.example.org@evil.example", "https://192.0.2.1"}},
		{"*.example.org",
			[]string{"https://a.example.org", "https://a.b.example.org"},
			[]string{"https://example.org", "https://.example.org.evil.example", "https://xexample.org", "https://a.example.org.evil.example"}},
		{"http://127.0.0.1:8181",
			[]string{"http://127.0.0.1:8181/x", "http://[::ffff:127.0.0.1]:8181"},
			[]string{"http://127.0.0.1", "https://127.0.0.1:8181", "http://127.0.0.2:8181", "http://localhost:8181", "http://127.1:8181", "http://2130706433:8181"}},
		{"http://[::1]", []string{"http://[::1]:80/"}, []string{"http://[::1%25lo]:80/", "http://[::2]/"}},
	} {
		content := bundle.Content{{Path: "data.yaml", Content: []byte("writ: {outside: {http.send: {hosts: [\"" + tt.listed + "\"]}}}\n")}}
		data, problems := content.Data()
		catalogue, more := content.Catalogue(data)
		if len(problems)+len(more) > 0 {
			t.Fatal(problems, more)
		}
		origin := catalogue.Outside.HTTP.Origins[0]
		for _, list := range []struct {
			urls []string
			want bool
		}{{tt.admits, true}, {tt.refuses, false}} {
			for _, text := range list.urls {
				u, err := url.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				if got := origin.Admits(u); got != list.want {
					t.Errorf("%s admits %s: %v", tt.listed, text, got)
				}
			}
		}
	}
}

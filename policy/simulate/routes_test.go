package simulate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
)

// count puts paths into routes, and gives the counts by route.
func countRoutes(paths []string, literal bool) map[string]uint64 {
	var r routes
	for i, p := range paths {
		segments, _ := policy.SplitPath(nil, p, true)
		g := r.find(segments, literal, true)
		g.merge(&Group{Count: 1, first: uint64(i)})
	}
	got := map[string]uint64{}
	n := 0
	r.each(func(route string, g *Group) { got[route] += g.Count; n++ })
	if n != r.n {
		panic(fmt.Sprintf("%d groups, counted %d", n, r.n))
	}
	return got
}

func TestRoutes(t *testing.T) {
	var users []string
	for i := range 30 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26))
		users = append(users, "/users/"+name, "/users/"+name+"/posts/"+name)
	}
	for name, tc := range map[string]struct {
		paths   []string
		literal bool
		want    map[string]uint64
	}{
		"numbers":      {paths: []string{"/orders/1", "/orders/2", "/orders"}, want: map[string]uint64{"/orders/{*}": 2, "/orders": 1}},
		"uuid and hex": {paths: []string{"/o/2f1c8a34-7a4e-4d0c-9a51-4b1f0a6a7d11", "/o/9f86d081884c7d65", "/o/ord_8f3a9c2e1b"}, want: map[string]uint64{"/o/{*}": 3}},
		"words":        {paths: []string{"/v1/oauth2/token", "/v2/facade"}, want: map[string]uint64{"/v1/oauth2/token": 1, "/v2/facade": 1}},
		"many words":   {paths: users, want: map[string]uint64{"/users/{*}": 30, "/users/{*}/posts/{*}": 30}},
		"root":         {paths: []string{"/", "/a/"}, want: map[string]uint64{"/": 1, "/a/": 1}},
		"deep":         {paths: []string{"/a/b/c/d/e/f/g/h/i/j/k/l", "/a/b/c/d/e/f/g/h/i/j/z"}, want: map[string]uint64{"/a/b/c/d/e/f/g/h/i/j/{**}": 2}},
		"braces":       {paths: []string{"/{*}/x"}, want: map[string]uint64{"/%7B%2A%7D/x": 1}},
		"calls":        {paths: []string{"/pkg.v1beta12345.S/M"}, literal: true, want: map[string]uint64{"/pkg.v1beta12345.S/M": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, countRoutes(tc.paths, tc.literal)); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
		})
	}
}

// The routes do not depend on the order of the paths.
func TestRoutesWithoutOrder(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var paths []string
		for range 300 {
			p := ""
			for range 1 + r.IntN(4) {
				p += "/" + string(rune('a'+r.IntN(1+r.IntN(26))))
			}
			paths = append(paths, p)
		}
		want := countRoutes(paths, false)
		r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		if diff := cmp.Diff(want, countRoutes(paths, false)); diff != "" {
			t.Fatalf("seed %d: another order gives other routes:\n%s", seed, diff)
		}
		var n uint64
		for _, c := range slices.Collect(maps.Values(want)) {
			n += c
		}
		if n != 300 {
			t.Fatalf("seed %d: %d of 300 counted", seed, n)
		}
	}
}

// The example of groups that are put together is the first on record.
func TestRoutesKeepTheFirstExample(t *testing.T) {
	for range 10 {
		var r routes
		for i := range uint64(2 * maxSiblings) {
			g := r.find([]string{"users", string(rune('a' + i))}, false, true)
			g.merge(&Group{Count: 1, first: i + 5, Example: Example{DecisionID: fmt.Sprint(i)}})
		}
		r.each(func(route string, g *Group) {
			if route != "/users/{*}" || g.Example.DecisionID != "0" || g.Count != 2*maxSiblings {
				t.Errorf("%s: example %q of %d, want the first", route, g.Example.DecisionID, g.Count)
			}
		})
	}
}

package program

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/writ-dev/writ/policy"
)

func TestEncode(t *testing.T) {
	seed := rand.Uint64()
	for range 6 { // Comparing is what takes the time.
		p := source{rand.New(rand.NewPCG(seed, 0))}.program()
		p.Digest[3] = 7
		p.Reads = policy.Reads{Headers: []string{"a", "b"}, AllQuery: true}
		data := p.Encode()
		if !bytes.Equal(data, p.Encode()) {
			t.Fatalf("seed %d: two encodings", seed)
		}
		got, err := Decode(data)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(p, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		seed++
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := grants(3, 2).Encode()
	version := bytes.Clone(good)
	version[len(magic)] = Version + 1
	unsorted := bytes.Replace(good, []byte("\x05bench\x09data.json"), []byte("\x09data.json\x05bench"), 1)
	if bytes.Equal(good, unsorted) {
		t.Fatal("the texts are not where this test looks for them")
	}
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":    {nil, "not a compiled policy"},
		"short":    {good[:len(good)-1], "more than there can be"},
		"cut":      {good[:len(magic)+20], "cut short"},
		"long":     {append(bytes.Clone(good), 0), "1 bytes follow its end"},
		"unsorted": {unsorted, "not written as it would be"},
		"counts":   {append([]byte(magic), Version, 0xff, 0xff, 0x3f), "more than there can be"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(tc.data); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v; want %q", err, tc.want)
			}
		})
	}
	if _, err := Decode(version); !errors.Is(err, ErrVersion) {
		t.Errorf("%v; want ErrVersion", err)
	}
}

func TestSelect(t *testing.T) {
	allow := func(rules ...uint32) Unit {
		u := Unit{}
		for _, rule := range rules {
			u.Clauses[policy.ServiceAllow] = append(u.Clauses[policy.ServiceAllow], Clause{Rule: rule})
		}
		return u
	}
	p := &Program{Compiler: "test", Rules: []policy.Rule{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}}}
	for i, u := range []Unit{allow(0, 3), allow(1), allow(3, 2)} {
		u.Service = string(rune('x' + i))
		p.Units = append(p.Units, u)
	}
	before := p.Encode()
	want := &Program{Compiler: "test", Rules: []policy.Rule{{ID: "a"}, {ID: "c"}, {ID: "d"}}, Units: []Unit{allow(0, 2), allow(2, 1)}}
	want.Units[0].Service, want.Units[1].Service = "x", "z"
	got := p.Select([]string{"z", "nobody", "x"})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(before, p.Encode()) {
		t.Error("the program itself was changed")
	}
}

func FuzzDecode(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(source{rand.New(rand.NewPCG(seed, 0))}.program().Encode())
	}
	f.Add((&Program{}).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(data)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Encode(), data) {
			t.Fatal("it is written in another way than it was read")
		}
		if _, err := New(p); err != nil {
			t.Fatalf("decoded, and yet: %v", err)
		}
	})
}

// FuzzEvaluate lets the fuzzer choose program and input by their seed.
func FuzzEvaluate(f *testing.F) {
	f.Add(uint64(1), uint64(1))
	f.Fuzz(func(t *testing.T, x, y uint64) {
		compareWithReference(t, source{rand.New(rand.NewPCG(x, y))}, map[string]int{})
	})
}

package strictyaml

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

type inner struct {
	Port  int               `yaml:"port"`
	Mode  string            `yaml:"mode" enum:"enforce|observe"`
	Words []string          `yaml:"words" enum:"red|green"`
	Env   map[string]string `yaml:"env"`
}

type document struct {
	Name    string         `yaml:"name"`
	On      bool           `yaml:"on"`
	Small   uint8          `yaml:"small"`
	Wait    time.Duration  `yaml:"wait"`
	Until   time.Time      `yaml:"until"`
	IP      netip.Addr     `yaml:"ip"`
	Part    *inner         `yaml:"part"`
	List    []inner        `yaml:"list"`
	Limits  map[string]int `yaml:"limits"`
	Share   *float64       `yaml:"share"`
	Private string
}

func TestDecode(t *testing.T) {
	got := document{Name: "before", Small: 7}
	_, err := Decode("f.yaml", []byte(`
# a comment
on: true
wait: 1m30s
until: 2030-01-31
ip: 192.0.2.1
part: {port: 80, mode: observe}
list:
  - port: 1
    words: [red, green, red]
  - env: {A: "1", B: x y}
limits: {a: 1}
share: .25
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	share := 0.25
	want := document{
		Name: "before", On: true, Small: 7, Wait: 90 * time.Second,
		Until:  time.Date(2030, 1, 31, 0, 0, 0, 0, time.UTC),
		IP:     netip.MustParseAddr("192.0.2.1"),
		Part:   &inner{Port: 80, Mode: "observe"},
		List:   []inner{{Port: 1, Words: []string{"red", "green", "red"}}, {Env: map[string]string{"A": "1", "B": "x y"}}},
		Limits: map[string]int{"a": 1},
		Share:  &share,
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestNothingToDecode(t *testing.T) {
	for _, text := range []string{"", "\n", "# only a comment\n"} {
		got := document{Name: "kept"}
		if _, err := Decode("f", []byte(text), &got); err != nil || got.Name != "kept" {
			t.Errorf("%q: %v, name %q", text, err, got.Name)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "nmae: x", `f:1:1: nmae: unknown key: did you mean "name"?`},
		{"unknown key, nothing near", "zzzzzzzzzzzz: x", `f:1:1: zzzzzzzzzzzz: unknown key; known here: ip, limits, list, name, on, part, share, small, until, wait`},
		{"field without tag", "Private: x", `f:1:1: Private: unknown key; known here: ip, limits, list, name, on, part, share, small, until, wait`},
		{"nested", "list:\n  - port: 1\n  - prot: 2", `f:3:5: list[1].prot: unknown key: did you mean "port"?`},
		{"twice", "name: a\nname: b", `f:2:1: name: given twice`},
		{"twice in a map", "limits:\n  a: 1\n  a: 2", `f:3:3: limits.a: given twice`},
		{"enum", "part:\n  mode: enforced", `f:2:9: part.mode: "enforced" is not one of enforce, observe: did you mean "enforce"?`},
		{"enum in a list", "list: [{words: [blue]}]", `f:1:17: list[0].words[0]: "blue" is not one of red, green`},
		{"text for number", "part: {port: http}", `f:1:14: part.port: want a whole number that fits 64 bits, got "http"`},
		{"fraction", "part: {port: 1.5}", `f:1:14: part.port: want a whole number that fits 64 bits, got "1.5"`},
		{"word for a fraction", "share: half", `f:1:8: share: want a number such as 0.5, got "half"`},
		{"no number", "share: .nan", `f:1:8: share: want a number such as 0.5, got ".nan"`},
		{"no number either", "share: NaN", `f:1:8: share: want a number such as 0.5, got "NaN"`},
		{"hexadecimal", "share: 0x1p-2", `f:1:8: share: want a number such as 0.5, got "0x1p-2"`},
		{"too large", "small: 256", `f:1:8: small: want a whole number that fits 8 bits, got "256"`},
		{"negative", "small: -1", `f:1:8: small: want a whole number that fits 8 bits, got "-1"`},
		{"bool as text", `on: "true"`, `f:1:5: on: want true or false, got "true"`},
		{"yes", `on: yes`, `f:1:5: on: want true or false, got "yes"`},
		{"duration without unit", "wait: 30", `f:1:7: wait: want a duration such as 30s or 1h, got "30"`},
		{"time", "until: tomorrow", `f:1:8: until: want a time such as 2030-01-31 or 2030-01-31T12:00:00Z, got "tomorrow"`},
		{"text unmarshaler", "ip: x", `f:1:5: ip: ParseAddr("x"): unable to parse IP`},
		{"null", "name:", `f:1:6: name: empty: give a value or leave the key out`},
		{"tilde", "part: ~", `f:1:7: part: empty: give a value or leave the key out`},
		{"null document", "~", `f:1:1: empty: give a value or leave the key out`},
		{"list for text", "name: [a]", `f:1:7: name: want a text, got a list`},
		{"text for list", "list: a", `f:1:7: list: want a list, got "a"`},
		{"list for struct", "part: [a]", `f:1:7: part: want a mapping, got a list`},
		{"list for map", "limits: [a]", `f:1:9: limits: want a mapping, got a list`},
		{"top is a list", "- a", `f:1:1: want a mapping, got a list`},
		{"alias", "name: &n x\npart: *n", "f:1:7: name: anchors and aliases are not supported: write the value out\nf:2:7: part: anchors and aliases are not supported: write the value out"},
		{"alias as key", "limits: {&n a: 1}", `f:1:10: limits: a key must be a plain word`},
		{"list as key", "limits: {[a]: 1}", `f:1:10: limits: a key must be a plain word`},
		{"merge", "part: {<<: {port: 1}}", `f:1:8: part.<<: unknown key; known here: env, mode, port, words`},
		{"tag", "name: !!binary aGk=", `f:1:7: name: tags such as !!binary are not supported: write the value alone`},
		{"second document", "name: a\n---\nname: b", `f:2:1: a second document: put everything into one`},
		{"syntax", "name: a\n\tb: c", `f:2:1: found a tab character that violates indentation`},
		{"all findings", "nmae: x\nsmall: x", "f:1:1: nmae: unknown key: did you mean \"name\"?\nf:2:8: small: want a whole number that fits 8 bits, got \"x\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Decode("f", []byte(tc.text), &document{})
			if err == nil {
				t.Fatal("accepted")
			}
			if diff := cmp.Diff(tc.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPosition(t *testing.T) {
	var doc document
	pos, err := Decode("f", []byte("name: a\nlist:\n  - port: 1\n  - port: 2\n"), &doc)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"list[1].port":  "f:4:11: list[1].port: no",
		"list[1].mode":  "f:4:5: list[1].mode: no",
		"list[7].mode":  "f:3:3: list[7].mode: no",
		"part.port":     "f:1:1: part.port: no",
		"unheard.of[1]": "f:1:1: unheard.of[1]: no",
	} {
		if got := pos.Errorf(key, "no").Error(); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	var doc document
	if _, err := Load(path, &doc); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("nam: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path, &doc)
	var e *Error
	if !errors.As(err, &e) || e.File != path || e.Line != 1 || e.Key != "nam" {
		t.Errorf("got %#v", err)
	}
}

// FuzzDecode holds that whatever is accepted means the same to a lenient
// decoder, and that every refusal names its place.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"", "name: x\nsmall: 3\nwait: 1s", "list: [{port: 1, words: [red]}]", "part: {port: 010}",
		"limits: {a: 1, a: 2}", "name: &a x\npart: *a", "? [a]\n: b", "name: |\n  x\n  y\n", "---\n...\n---\n", "name: \"\\0\"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got document
		_, err := Decode("f", data, &got)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		var lenient struct {
			Name string `yaml:"name"`
			On   bool   `yaml:"on"`
			Part *struct {
				Mode string `yaml:"mode"`
			} `yaml:"part"`
		}
		if err := yaml.Unmarshal(data, &lenient); err != nil {
			t.Fatalf("accepted what YAML refuses: %v", err)
		}
		if lenient.Name != got.Name || lenient.On != got.On || (lenient.Part == nil) != (got.Part == nil) || lenient.Part != nil && lenient.Part.Mode != got.Part.Mode {
			t.Fatalf("means %+v to YAML, %+v to us", lenient, got)
		}
	})
}

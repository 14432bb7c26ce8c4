package jointoken

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, file, stdin, env string
		want, wantErr          string
	}{
		{name: "none"},
		{name: "environment", env: "from-env", want: "from-env"},
		{name: "file before environment", file: file, env: "from-env", want: "from-file"},
		{name: "standard input", file: "-", stdin: " from-stdin\n", want: "from-stdin"},
		{name: "empty", file: "-", stdin: "\n", wantErr: "empty"},
		{name: "two words", file: "-", stdin: "secret two", wantErr: "single word"},
		{name: "slash", file: "-", stdin: "secret/../x", wantErr: "single word"},
		{name: "too long", file: "-", stdin: strings.Repeat("secret", maxToken), wantErr: "more than"},
		{name: "no file", file: file + "x", wantErr: "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Read(tc.file, strings.NewReader(tc.stdin), tc.env)
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			switch {
			case tc.wantErr == "" && err != nil:
				t.Error(err)
			case tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)):
				t.Errorf("error %v, want one with %q", err, tc.wantErr)
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("error %q tells the token", err)
			}
		})
	}
}

func TestData(t *testing.T) {
	d := Data("abc")
	if d.Type != "join_token" || string(d.Payload) != "abc" {
		t.Errorf("got %v", d)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("abc\n"))
	f.Add([]byte{0, '/', 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		token, err := parse("x", data)
		if err == nil && (token == "" || strings.ContainsAny(token, "/ \n")) {
			t.Errorf("accepted %q", token)
		}
	})
}

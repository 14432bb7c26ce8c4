package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type config struct {
	Name  string   `yaml:"name"`
	Port  int      `yaml:"port"`
	Roles []string `yaml:"roles"`
}

func spec(got *config) Spec[config] {
	return Spec[config]{
		Name:    "testd",
		Default: func() config { return config{Name: "default", Port: 1} },
		Flags: func(f *pflag.FlagSet, c *config) {
			f.StringVar(&c.Name, "name", c.Name, "")
			f.IntVar(&c.Port, "port", c.Port, "")
			f.StringSliceVar(&c.Roles, "roles", c.Roles, "")
		},
		Validate: func(c *config, at At) error {
			if c.Port == 13 {
				return at("port", "unlucky")
			}
			return nil
		},
		Run: func(_ context.Context, _ *cobra.Command, c config, _ *slog.Logger) error {
			*got = c
			return nil
		},
	}
}

func TestFlagsOverFileOverDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "testd.yaml")
	if err := os.WriteFile(file, []byte("name: file\nport: 2\nroles: [a, b]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want config
		err  string
	}{
		{"defaults", nil, config{Name: "default", Port: 1}, ""},
		{"file", []string{"--config", file}, config{Name: "file", Port: 2, Roles: []string{"a", "b"}}, ""},
		{"flags over file, in any order", []string{"--port", "3", "--config", file, "--roles", "c,d", "--roles", "e"}, config{Name: "file", Port: 3, Roles: []string{"c", "d", "e"}}, ""},
		{"a flag that says the default", []string{"--config", file, "--name", "default"}, config{Name: "default", Port: 2, Roles: []string{"a", "b"}}, ""},
		{"a bad flag is named", []string{"--port", "13"}, config{}, "--port: unlucky"},
		{"no such file", []string{"--config", file + "x"}, config{}, "no such file"},
		{"a bad level", []string{"--log-level", "loud"}, config{}, "--log-level"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got config
			var stderr bytes.Buffer
			code := spec(&got).Execute(context.Background(), c.args, nil, &stderr, &stderr)
			if (code != 0) != (c.err != "") || !strings.Contains(stderr.String(), c.err) {
				t.Errorf("exit %d, said %q, want %q", code, stderr.String(), c.err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestErrorsOfAFileNameTheLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "testd.yaml")
	if err := os.WriteFile(file, []byte("name: x\nport: 13\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got config
	var stderr bytes.Buffer
	if code := spec(&got).Execute(context.Background(), []string{"--config", file, "--check"}, nil, &stderr, &stderr); code != 1 {
		t.Errorf("exit %d", code)
	}
	if want := file + ":2:7: port: unlucky"; !strings.Contains(stderr.String(), want) {
		t.Errorf("said %q, want %q", stderr.String(), want)
	}
}

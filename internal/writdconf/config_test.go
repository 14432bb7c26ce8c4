package writdconf

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidatePublishing(t *testing.T) {
	two := []Approver{{Name: "ann", Keys: []string{"a"}}, {Name: "bob", Keys: []string{"b"}}}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // empty: nothing
	}{
		{"nothing", func(*Config) {}, ""},
		{"two approvals of two", func(c *Config) { c.Approvers, c.Approvals = two, 2 }, ""},
		{"short form and long form", func(c *Config) {
			c.PublisherKeys, c.Publishers = []string{"k"}, []Publisher{{Name: "a", Keys: []string{"k"}}}
		}, "publisher_keys: is the short form of publishers"},
		{"no database", func(c *Config) { c.Database = &Database{} }, "database: names no database"},
		{"two databases", func(c *Config) { c.Database = &Database{Postgres: "x", DSNFile: "y"} }, "database.dsn_file: postgres says it already"},
		{"publisher without keys", func(c *Config) { c.Publishers = []Publisher{{Name: "a"}} }, "publishers[0].keys: missing"},
		{"approver without a name", func(c *Config) { c.Approvers = []Approver{{Keys: []string{"a"}}} }, "approvers[0].name: missing"},
		{"approver without keys", func(c *Config) { c.Approvers = []Approver{{Name: "ann"}} }, "approvers[0].keys: missing"},
		{"one person twice", func(c *Config) { c.Approvers = append(two[:2:2], Approver{Name: " Ann", Keys: []string{"c"}}) }, "approvers[2].name: \" Ann\" is there twice"},
		{"more than there are", func(c *Config) { c.Approvers, c.Approvals = two[:1], 2 }, "approvals: 2 are demanded and 1 approvers"},
		{"three", func(c *Config) { c.Approvers, c.Approvals = two, 3 }, "approvals: want 0, 1 or 2"},
		{"of what nobody signed", func(c *Config) { c.Approvers, c.Approvals, c.AllowUnsignedPolicy = two, 1, true }, "approvals: take signed policy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Default()
			c.TrustDomain, c.DataDir = "example.org", "/x"
			tt.change(&c)
			err := c.Validate(func(key, format string, args ...any) error { return fmt.Errorf(key+": "+format, args...) })
			got := ""
			if err != nil {
				got = err.Error()
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What a DSN holds does not get into a log, and not from a file that others
// read.
func TestDatabaseSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dsn")
	d := &Database{DSNFile: file}
	write := func(text string, mode os.FileMode) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		text string
		mode os.FileMode
		want string
	}{{"host=x password=hunter2", 0o644, "chmod 600"}, {" \n", 0o600, "is empty"}} {
		write(tt.text, tt.mode)
		if _, err := d.DSN(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q %o: %v", tt.text, tt.mode, err)
		}
	}
	write("host=x password=hunter2\n", 0o600)
	if dsn, err := d.DSN(); err != nil || dsn != "host=x password=hunter2" {
		t.Errorf("%q, %v", dsn, err)
	}
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "database", &Database{Postgres: "host=x password=hunter2"})
	if strings.Contains(out.String(), "hunter2") {
		t.Error(out.String())
	}
}

package writdconf

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Database is a PostgreSQL database in place of the SQLite file in the data
// directory. Several control planes with the issuer role may share it; one at a
// time may run the decision role on it.
type Database struct {
	// PostgreSQL database: an URL, or key=value pairs as libpq reads them. One
	// of postgres and dsn_file; a password belongs into the file.
	Postgres string `yaml:"postgres"`
	// File that holds what postgres would, mode 0600.
	DSNFile string `yaml:"dsn_file"`
	// File of the key that authenticates the entries in the database, mode 0600;
	// keys/registry.key in the data directory when left out. It is made where the
	// database is new; replicas all need the same.
	RegistryKeyFile string `yaml:"registry_key_file"`
}

// LogValue leaves out what may hold a password.
func (d *Database) LogValue() slog.Value {
	if d == nil {
		return slog.StringValue("sqlite")
	}
	return slog.GroupValue(slog.Bool("postgres", d.Postgres != ""), slog.String("dsn_file", d.DSNFile))
}

// DSN is what to connect to. It may hold a password.
func (d *Database) DSN() (string, error) {
	if d.DSNFile == "" {
		return d.Postgres, nil
	}
	info, err := os.Stat(d.DSNFile)
	if err != nil {
		return "", fmt.Errorf("database.dsn_file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("database.dsn_file: %s has mode %04o, so that others can read the password: chmod 600 it", d.DSNFile, info.Mode().Perm())
	}
	text, err := os.ReadFile(d.DSNFile)
	if err != nil {
		return "", fmt.Errorf("database.dsn_file: %w", err)
	}
	dsn := strings.TrimSpace(string(text))
	if dsn == "" {
		return "", fmt.Errorf("database.dsn_file: %s is empty", d.DSNFile)
	}
	return dsn, nil
}

func (d *Database) validate(bad func(key, format string, args ...any)) {
	switch {
	case d.Postgres == "" && d.DSNFile == "":
		bad("database", "names no database: give postgres or dsn_file, or leave database out for SQLite in data_dir")
	case d.Postgres != "" && d.DSNFile != "":
		bad("database.dsn_file", "postgres says it already: keep one of the two")
	}
}

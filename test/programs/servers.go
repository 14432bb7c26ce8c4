package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ServerConfig says how to start an issuer. A server that is started again with
// the same Config goes on where it stopped.
type ServerConfig struct {
	// Path of the program.
	Path string
	// Dir holds its configuration, state and log, and the admin socket, so its
	// path is short.
	Dir         string
	TrustDomain string
	// Ports of loopback; only writd has a control port.
	IssuerPort, ControlPort int
	// More is added to writd's configuration file.
	More string
	// CPUs that writd may use; all if empty.
	CPUs []int
	// MoreServer and MorePlugins are added to the blocks of spire-server's.
	MoreServer, MorePlugins string
}

// AdminSocket is the path of writd's admin socket.
func (c *ServerConfig) AdminSocket() string { return filepath.Join(c.DataDir(), "run", "admin.sock") }

// DataDir is writd's data directory.
func (c *ServerConfig) DataDir() string { return filepath.Join(c.Dir, "data") }

// Server is a running issuer.
type Server struct {
	*Program
	*Issuer
}

// Stop ends the server in an orderly way.
func (s *Server) Stop() error {
	return errors.Join(s.Issuer.Close(), s.Program.Stop(20*time.Second))
}

// Limits of signing are off, as they are in the SPIRE that runs beside.
const writdConf = `trust_domain: %s
data_dir: %s
issuer_listen: 127.0.0.1:%d
control_listen: 127.0.0.1:%d
sign_rate: 0
`

// StartWritd starts our control plane with all its roles.
func StartWritd(ctx context.Context, c ServerConfig) (*Server, error) {
	conf, err := c.write("writd.yaml", fmt.Sprintf(writdConf, c.TrustDomain, c.DataDir(), c.IssuerPort, c.ControlPort)+c.More)
	if err != nil {
		return nil, err
	}
	p, err := Start(Config{Path: c.Path, Args: []string{"--config", conf}, Log: filepath.Join(c.Dir, "log"), Notify: true, CPUs: c.CPUs})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.Ready(ctx); err != nil {
		p.Kill()
		return nil, err
	}
	return c.serve(p, c.AdminSocket())
}

const spireConf = `server {
	bind_address = "127.0.0.1"
	bind_port = "%[1]d"
	socket_path = "%[2]s/api.sock"
	trust_domain = "%[3]s"
	data_dir = "%[2]s"
	log_level = "WARN"
	ca_ttl = "24h"
	default_x509_svid_ttl = "1h"
	default_jwt_svid_ttl = "5m"
	ratelimit { signing = false attestation = false }
	%[4]s
}
plugins {
	DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[2]s/datastore.sqlite3" } }
	KeyManager "disk" { plugin_data { keys_path = "%[2]s/keys.json" } }
	NodeAttestor "join_token" { plugin_data {} }
	%[5]s
}
`

// StartSPIRE starts SPIRE's server: SQLite, keys on disk, rate limits off.
func StartSPIRE(ctx context.Context, c ServerConfig) (*Server, error) {
	conf, err := c.write("server.conf", fmt.Sprintf(spireConf, c.IssuerPort, c.Dir, c.TrustDomain, c.MoreServer, c.MorePlugins))
	if err != nil {
		return nil, err
	}
	p, err := Start(Config{Path: c.Path, Args: []string{"run", "-config", conf}, Log: filepath.Join(c.Dir, "log")})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	socket := filepath.Join(c.Dir, "api.sock")
	for _, at := range [][2]string{{"unix", socket}, {"tcp", fmt.Sprintf("127.0.0.1:%d", c.IssuerPort)}} {
		if err := p.Reachable(ctx, at[0], at[1]); err != nil {
			p.Kill()
			return nil, err
		}
	}
	return c.serve(p, socket)
}

func (c *ServerConfig) write(name, content string) (string, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(c.Dir, name)
	return path, os.WriteFile(path, []byte(content), 0o600)
}

func (c *ServerConfig) serve(p *Program, socket string) (*Server, error) {
	api, err := DialIssuer(c.TrustDomain, fmt.Sprintf("127.0.0.1:%d", c.IssuerPort), socket)
	if err != nil {
		p.Kill()
		return nil, err
	}
	return &Server{Program: p, Issuer: api}, nil
}

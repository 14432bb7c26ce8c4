package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

// What every nginx of ours shares: one worker, no log, connections that are
// kept. 1.22 closes a connection after 1,000 requests by default; a proxy that
// does not would win by that alone.
const nginxConf = `daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
%s
events { worker_connections 1024; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
%s
}
`

// The server that all pairs stand in front of: 100 bytes.
const backendConf = `	server { listen %s; location / { return 200 "%s"; } }`

const outboundConf = `	upstream peer { server %[2]s; keepalive 64; keepalive_requests 1000000000; }
	server {
		listen %[1]s;
		location / {
			proxy_pass https://peer; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
			proxy_ssl_protocols TLSv1.3;
			proxy_ssl_certificate a.crt; proxy_ssl_certificate_key a.key;
			proxy_ssl_verify on; proxy_ssl_trusted_certificate ca.crt; proxy_ssl_name b;
		}
	}`

const inboundConf = `	upstream app { server %[2]s; keepalive 64; keepalive_requests 1000000000; }
	server {
		listen %[1]s ssl;
		ssl_protocols TLSv1.3;
		ssl_certificate b.crt; ssl_certificate_key b.key;
		ssl_verify_client on; ssl_client_certificate ca.crt;
		location / {
			proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
		}
	}`

// nginx starts one with a configuration, and waits until addr answers.
func (b *bench) nginx(ctx context.Context, name, addr, servers string) (*programs.Program, error) {
	dir := filepath.Join(b.work, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // the directory is ours alone
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, user, servers), 0o600); err != nil {
		return nil, err
	}
	path, err := lookPath("nginx")
	if err != nil {
		return nil, err
	}
	p, err := programs.Start(programs.Config{Path: path, Args: []string{"-p", dir, "-c", conf}, Log: filepath.Join(dir, "log")})
	if err != nil {
		return nil, err
	}
	if err := p.Reachable(ctx, "tcp", addr); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// backend starts the server that answers 100 bytes.
func (b *bench) backend(ctx context.Context) (addr string, stop func(), err error) {
	ports, err := programs.FreePorts(1)
	if err != nil {
		return "", nil, err
	}
	addr = loopback(ports[0])
	p, err := b.nginx(ctx, "backend", addr, fmt.Sprintf(backendConf, addr, strings.Repeat("x", 100)))
	if err != nil {
		return "", nil, err
	}
	return addr, func() { _ = p.Stop(5 * time.Second) }, nil
}

// nginxPair is two nginx with mTLS between them.
type nginxPair struct {
	addr    string
	a, b    *programs.Program
	workers []int
}

func (b *bench) nginxPair(ctx context.Context, app string) (*nginxPair, error) {
	ports, err := programs.FreePorts(2)
	if err != nil {
		return nil, err
	}
	pair := &nginxPair{addr: loopback(ports[0])}
	middle := loopback(ports[1])
	for _, dir := range []string{"nginx-a", "nginx-b"} {
		if err := os.MkdirAll(filepath.Join(b.work, dir), 0o700); err != nil {
			return nil, err
		}
	}
	if err := writeCertificates(filepath.Join(b.work, "nginx-a"), filepath.Join(b.work, "nginx-b")); err != nil {
		return nil, err
	}
	if pair.b, err = b.nginx(ctx, "nginx-b", middle, fmt.Sprintf(inboundConf, middle, app)); err != nil {
		return nil, err
	}
	if pair.a, err = b.nginx(ctx, "nginx-a", pair.addr, fmt.Sprintf(outboundConf, pair.addr, middle)); err != nil {
		pair.stop()
		return nil, err
	}
	for _, p := range []*programs.Program{pair.a, pair.b} {
		workers, err := programs.Descendants(p.PID())
		if err != nil || len(workers) != 1 {
			pair.stop()
			return nil, fmt.Errorf("want one worker of nginx, got %v (%w)", workers, err)
		}
		for pid := range workers {
			pair.workers = append(pair.workers, pid)
		}
	}
	return pair, nil
}

func (p *nginxPair) stop() {
	for _, prog := range []*programs.Program{p.a, p.b} {
		if prog != nil {
			_ = prog.Stop(5 * time.Second)
		}
	}
}

// writeCertificates writes a CA and a P-256 leaf for each side, made for this
// run: a into dirA, b into dirB.
func writeCertificates(dirA, dirB string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := template(1, "ca")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	for i, side := range []struct{ name, dir string }{{"a", dirA}, {"b", dirB}} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf := template(int64(i+2), side.name)
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
		leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		for _, f := range []struct {
			name, kind string
			der        []byte
		}{{"ca.crt", "CERTIFICATE", caDER}, {side.name + ".crt", "CERTIFICATE", der}, {side.name + ".key", "PRIVATE KEY", keyDER}} {
			block := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
			if err := os.WriteFile(filepath.Join(side.dir, f.name), block, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

func template(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

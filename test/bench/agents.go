package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/test/programs"
)

// realAgents are the agents of a site that are real programs; the others are
// clients that follow their entries as such a program does.
const realAgents = 3

// spireAgentConf leaves everything at its default that need not be told.
const spireAgentConf = `agent {
	data_dir = "%[1]s"
	log_level = "WARN"
	server_address = "127.0.0.1"
	server_port = "%[2]s"
	socket_path = "%[3]s"
	trust_bundle_path = "%[1]s/bundle.pem"
	trust_domain = "bench.test"
	join_token = "%[4]s"
}
plugins {
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`

const writAgentConf = `trust_domain: bench.test
server_address: 127.0.0.1:%[2]s
trust_bundle: %[1]s/bundle.pem
join_token_file: %[1]s/token
data_dir: %[1]s/data
socket: %[3]s
`

// siteAgent is a running agent and where workloads find it.
type siteAgent struct {
	*programs.Program
	id     spiffeid.ID
	socket string
}

// startAgent starts an agent of the subject's own at its server. More is added
// to writ-agent's configuration.
func (b *bench) startAgent(ctx context.Context, at *site, token, more string) (*siteAgent, error) {
	dir, err := os.MkdirTemp(b.work, "a")
	if err != nil {
		return nil, err
	}
	bundle, err := at.server.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	var trust []byte
	for _, a := range bundle.X509Authorities() {
		trust = append(trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw})...)
	}
	a := &siteAgent{
		id:     spiffeid.RequireFromSegments(at.server.TrustDomain, "spire", "agent", "join_token", token),
		socket: filepath.Join(dir, "run", "api.sock"),
	}
	_, port, err := net.SplitHostPort(at.server.Addr)
	if err != nil {
		return nil, err
	}
	c := programs.Config{Path: filepath.Join(b.bin, "writ-agent"), Log: filepath.Join(dir, "log"), Notify: true}
	conf := filepath.Join(dir, "agent.conf")
	c.Args = []string{"--config", conf}
	content := fmt.Sprintf(writAgentConf, dir, port, a.socket) + more
	if at.subject == ours {
		err = b.built("writ-agent")
	} else {
		c.Path, err = b.spireProgram(ctx, "spire-agent")
		c.Args, c.Notify = []string{"run", "-config", conf}, false
		content = fmt.Sprintf(spireAgentConf, dir, port, a.socket, token)
	}
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{"bundle.pem": trust, "token": []byte(token + "\n"), "agent.conf": []byte(content)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	if a.Program, err = programs.Start(c); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if c.Notify {
		err = a.Ready(ctx)
	}
	if err == nil {
		err = a.Reachable(ctx, "unix", a.socket)
	}
	if err != nil {
		a.Kill()
		return nil, err
	}
	return a, nil
}

// populate lets 100 agents join, a few of them real.
func (b *bench) populate(ctx context.Context, at *site, _ *samples) error {
	for n, token := range at.tokens {
		if n < realAgents {
			a, err := b.startAgent(ctx, at, token, "")
			if err != nil {
				return err
			}
			at.agents = append(at.agents, a)
			continue
		}
		node, err := at.server.Attest(ctx, token)
		if err != nil {
			return err
		}
		client, err := follow(ctx, node, at.subject == ours)
		if err != nil {
			return err
		}
		at.others = append(at.others, client)
	}
	return nil
}

// leave ends the clients that stand for agents.
func (s *site) leave() {
	for _, o := range s.others {
		o.close()
	}
	s.others = nil
}

// streamClient stands for an agent: it fetches its entries whenever the server
// says that they changed, or every five seconds from a server that does not.
type streamClient struct {
	conn   *grpc.ClientConn
	cancel context.CancelFunc
	done   sync.WaitGroup
	// failed is why it ended by itself.
	failed error
}

const spireSyncInterval = 5 * time.Second

func follow(ctx context.Context, node *programs.Node, pushed bool) (*streamClient, error) {
	conn, err := node.Dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &streamClient{conn: conn, cancel: cancel}
	if err := fetchEntries(ctx, conn); err != nil { // it is there
		cancel()
		return nil, errors.Join(err, conn.Close())
	}
	c.done.Go(func() {
		run := c.poll
		if pushed {
			run = c.watch
		}
		if err := run(ctx); ctx.Err() == nil {
			c.failed = err
		}
	})
	return c, nil
}

// close ends the client and gives the error by which it ended before.
func (c *streamClient) close() error {
	c.cancel()
	c.done.Wait()
	return errors.Join(c.failed, c.conn.Close())
}

func (c *streamClient) watch(ctx context.Context) error {
	stream, err := watchv1.NewEntryWatchClient(c.conn).Watch(ctx, &watchv1.WatchRequest{})
	for err == nil {
		if _, err = stream.Recv(); err == nil {
			err = fetchEntries(ctx, c.conn)
		}
	}
	return err
}

func (c *streamClient) poll(ctx context.Context) error {
	tick := time.NewTicker(spireSyncInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := fetchEntries(ctx, c.conn); err != nil {
			return err
		}
	}
}

// fetchEntries asks for the authorized entries, as agents do. An agent of a site
// has so few that they come whole.
func fetchEntries(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := entryv1.NewEntryClient(conn).SyncAuthorizedEntries(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("sync entries: %w", err)
		}
	}
}

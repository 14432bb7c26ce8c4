package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/writ-dev/writ/test/programs"
)

// idleStreams is how many workloads one agent has to hold.
const idleStreams = 10_000

var idleBudgets = []Budget{{Measure: "idle-streams", AtLeast: idleStreams}}

// idle measures what an agent holds when 10,000 workloads have an open stream,
// each on a connection of its own, as go-spiffe keeps them.
func idle(ctx context.Context, b *bench) (rows []Row, err error) {
	server, err := b.issuer(ctx, ours)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	token, err := server.JoinToken(ctx, spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	at := &site{subject: ours, server: server}
	a, err := b.startAgent(ctx, at, token, fmt.Sprintf("max_connections_per_uid: %[1]d\nmax_streams_per_uid: %[1]d\n", idleStreams))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Stop(20*time.Second)) }()
	entry, err := server.Entry(a.id, "/idle", me())
	if err != nil {
		return nil, err
	}
	if _, err := server.CreateEntries(ctx, entry); err != nil {
		return nil, err
	}
	w, err := watch(ctx, a, func(have []string) bool { return len(have) == 1 })
	if err != nil {
		return nil, err
	}
	w.close()
	var s samples
	before, err := programs.MemoryOf(a.PID())
	if err != nil {
		return nil, err
	}
	s.add("rss/idle-streams-0", ours, "MB", float64(before.RSS)/1e6)
	connections, err := b.connections(a.PID())
	if err != nil {
		return nil, err
	}
	b.say("  %d streams on %d connections", idleStreams, connections)
	held, streams, err := holdStreams(ctx, a.socket, connections)
	for _, conn := range held {
		defer conn.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("%d streams are open, the next is not: %w", streams, err)
	}
	if err := b.settledRSS(ctx, &s, "rss/idle-streams-10k", ours, a.PID()); err != nil {
		return nil, err
	}
	s.add("idle-streams", ours, "streams", float64(streams))
	s.add("idle-connections", ours, "connections", float64(len(held)))
	return s.rows(), nil
}

// filesBeside is how many files a program has open beside those of connections.
const filesBeside = 500

// connections is how many the limits of open files are good for, which are raised as
// far as that is allowed: each takes one here, and two at the agent, itself and the
// process at its other end. What is missing to idleStreams has to share connections.
func (b *bench) connections(agent int) (int, error) {
	here, err := programs.RaiseFiles(os.Getpid(), idleStreams+filesBeside)
	if err != nil {
		return 0, err
	}
	there, err := programs.RaiseFiles(agent, 2*idleStreams+filesBeside)
	if err != nil {
		return 0, err
	}
	n := min(int(here)-filesBeside, (int(there)-filesBeside)/2, idleStreams)
	switch {
	case 2*n < idleStreams:
		return 0, fmt.Errorf("%d files may be open here and %d at the agent, %d streams need %d and %d: raise the limit (ulimit -n)",
			here, there, idleStreams, idleStreams/2+filesBeside, idleStreams+filesBeside)
	case n < idleStreams:
		b.say("  %d files may be open here and %d at the agent: some streams have to share a connection (ulimit -n %d)", here, there, 2*idleStreams+filesBeside)
	}
	return n, nil
}

// holdStreams opens FetchX509SVID idleStreams times and reads the first answer
// of each. A connection costs nothing here but its descriptor: what holds 10,000
// gRPC clients would be larger than what is measured.
func holdStreams(ctx context.Context, socket string, connections int) (held []net.Conn, streams int, err error) {
	for streams < idleStreams && ctx.Err() == nil {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return held, streams, err
		}
		held = append(held, conn)
		n := 1
		if idleStreams-streams > connections-len(held)+1 {
			n = 2
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write(streamRequest(n)); err != nil {
			return held, streams, err
		}
		if err := firstMessages(conn, n); err != nil {
			return held, streams, err
		}
		conn.SetDeadline(time.Time{})
		streams += n
	}
	return held, streams, ctx.Err()
}

// streamRequest is all that a client of gRPC sends to open n streams.
func streamRequest(n int) []byte {
	var out, headers bytes.Buffer
	out.WriteString(http2.ClientPreface)
	encoder := hpack.NewEncoder(&headers)
	f := http2.NewFramer(&out, nil)
	f.WriteSettings()
	f.WriteSettingsAck()
	for i := range n {
		headers.Reset()
		for _, h := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", workloadpb.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName},
			{":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"}, {"workload.spiffe.io", "true"},
		} {
			encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers.Bytes(), EndHeaders: true})
		f.WriteData(id, true, make([]byte, 5)) // an empty message
	}
	return out.Bytes()
}

// firstMessages reads until n streams have data, and fails where one ends.
func firstMessages(conn net.Conn, n int) error {
	f := http2.NewFramer(nil, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for answered := map[uint32]bool{}; len(answered) < n; {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.DataFrame:
			answered[frame.StreamID] = true
		case *http2.MetaHeadersFrame:
			if frame.StreamEnded() {
				return fmt.Errorf("the agent refuses: %v", frame.Fields)
			}
		case *http2.GoAwayFrame:
			return fmt.Errorf("the agent closes the connection: %v", frame.ErrCode)
		}
	}
	return nil
}

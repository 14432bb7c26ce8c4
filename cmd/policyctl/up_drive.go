package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/mesh"
)

// decisionHeader names the event of a response.
const decisionHeader = "writ-decision-id"

// driveTimeout bounds one request, its event included.
const driveTimeout = 10 * time.Second

// call is one request on its way.
type call struct {
	mesh.Request
	addr string
	// tls is set for a caller without an SVID, who calls the service's inbound
	// listener itself.
	tls *tls.Config
}

// outcome is what the caller saw.
type outcome struct {
	// decision is empty when there was no response.
	decision string
	// status is HTTP's or gRPC's; -1 when there was no response.
	status  int
	latency time.Duration
	at      time.Time
	// ports are the local ports of the connections made.
	ports map[int]bool
	err   error
}

// dialer connects and notes the local ports.
type dialer struct {
	mu    sync.Mutex
	ports map[int]bool
}

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	var nd net.Dialer
	conn, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ports[conn.LocalAddr().(*net.TCPAddr).Port] = true
	return conn, nil
}

func (d *dialer) used() map[int]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.ports)
}

// do sends the request. A request that gets no response is an outcome too.
func (c *call) do(ctx context.Context, protocol string) outcome {
	ctx, cancel := context.WithTimeout(ctx, driveTimeout)
	defer cancel()
	d := &dialer{ports: map[int]bool{}}
	began := time.Now()
	var o outcome
	if protocol == mesh.GRPC {
		o = c.grpc(ctx, d)
	} else {
		o = c.http(ctx, d)
	}
	o.at = time.Now()
	o.latency = o.at.Sub(began)
	o.ports = d.used()
	return o
}

// http writes the request itself: net/http would clean the path, and what is
// decided must be what the mesh file says, byte for byte.
func (c *call) http(ctx context.Context, d *dialer) outcome {
	failed := func(err error) outcome { return outcome{status: -1, err: err} }
	conn, err := d.dial(ctx, c.addr)
	if err != nil {
		return failed(err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if c.tls != nil {
		cfg := c.tls.Clone()
		cfg.NextProtos = []string{"http/1.1"}
		conn = tls.Client(conn, cfg)
	}
	if _, err := io.WriteString(conn, c.head()); err != nil {
		return failed(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: c.Method})
	if err != nil {
		return failed(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return failed(err)
	}
	return outcome{decision: resp.Header.Get(decisionHeader), status: resp.StatusCode}
}

func (c *call) head() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: policyctl\r\n", c.Method, c.Path, c.Target)
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		fmt.Fprintf(&b, "%s: %s\r\n", name, c.Headers[name])
	}
	if c.Method != http.MethodGet && c.Method != http.MethodHead {
		b.WriteString("Content-Length: 0\r\n")
	}
	b.WriteString("Connection: close\r\n\r\n")
	return b.String()
}

// grpc calls with an empty message: every message of every type can be empty.
func (c *call) grpc(ctx context.Context, d *dialer) outcome {
	creds := insecure.NewCredentials()
	if c.tls != nil {
		creds = credentials.NewTLS(c.tls)
	}
	conn, err := grpc.NewClient("passthrough:///"+c.addr, grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(d.dial), grpc.WithAuthority(c.Target), grpc.WithUserAgent("policyctl"), grpc.WithDisableServiceConfig())
	if err != nil {
		return outcome{status: -1, err: err}
	}
	defer conn.Close()
	var header, trailer metadata.MD
	var reply []byte
	err = conn.Invoke(metadata.NewOutgoingContext(ctx, metadata.New(c.Headers)), c.Path, []byte{}, &reply,
		grpc.ForceCodec(rawCodec{}), grpc.Header(&header), grpc.Trailer(&trailer))
	o := outcome{status: int(status.Code(err)), err: err}
	for _, md := range []metadata.MD{header, trailer} {
		if v := md.Get(decisionHeader); len(v) > 0 {
			o.decision = v[0]
		}
	}
	if o.decision == "" && err != nil {
		o.status = -1
	}
	return o
}

// rawCodec passes messages as the bytes they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("raw message is a %T", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("raw message into a %T", v)
	}
	*b = data
	return nil
}

// errNoEvent is the verdict on a response that names no event.
var errNoEvent = errors.New("the response names no decision: nothing enforces here")

// onRecord finds the event of an outcome.
func (o *outcome) onRecord(ctx context.Context, tail *recordTail, target string) (*recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, driveTimeout)
	defer cancel()
	switch {
	case o.decision != "":
		return tail.find(ctx, byDecision(o.decision))
	case o.status >= 0:
		return nil, errNoEvent
	}
	r, err := tail.find(ctx, byPort(o.ports, target))
	if err != nil {
		return nil, fmt.Errorf("%w (the caller saw: %w)", err, o.err)
	}
	return r, nil
}

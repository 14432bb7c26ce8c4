package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/rpc"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/test/programs"
)

// herdCommand is what this program is called with to be the clients of the suite
// storm, in a process of their own: a server that has a processor to itself can be
// measured only where its clients have another.
const herdCommand = "herd"

// Herd is many agents of one issuer, at the other end of net/rpc. Each is what the
// issuer sees of a writ-agent: where it connects from, what it says, asks, shows and
// holds open, when it gives up and when it comes again. It does not verify what it
// gets, nor make a key for each SVID, so that the issuer has more to do than it.
type Herd struct {
	ctx    context.Context
	issuer *programs.Issuer
	agents []*herdAgent
}

// serveHerd serves a Herd on a Unix socket until ctx ends.
func serveHerd(ctx context.Context, socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	server := rpc.NewServer()
	if err := server.Register(&Herd{ctx: ctx}); err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go server.ServeConn(conn)
	}
}

// None is what is not said, and not answered.
type None struct{}

// JoinArgs say where to join, and how many agents with how many entries each.
type JoinArgs struct {
	TrustDomain, Addr, AdminSocket string
	Agents, Entries                int
}

// Join has the agents attested, and makes their entries.
func (h *Herd) Join(args JoinArgs, _ *None) (err error) {
	if h.issuer, err = programs.DialIssuer(args.TrustDomain, args.Addr, args.AdminSocket); err != nil {
		return err
	}
	h.agents = make([]*herdAgent, args.Agents)
	err = h.each(32, func(ctx context.Context, n int) error {
		token, err := h.issuer.JoinToken(ctx, spiffeid.ID{})
		if err != nil {
			return err
		}
		node, err := h.issuer.Attest(ctx, token)
		if err != nil {
			return err
		}
		h.agents[n] = &herdAgent{addr: args.Addr, from: net.IPv4(127, 1, byte(n/250), byte(1+n%250)), svid: node.SVID}
		h.agents[n].csr, err = node.CSR()
		return err
	})
	if err != nil {
		return err
	}
	for agents := range slices.Chunk(h.agents, 50) {
		var entries []*types.Entry
		for _, a := range agents {
			for i := range args.Entries {
				e, err := h.issuer.Entry(a.svid.ID, a.svid.ID.Path()[len("/spire/agent"):]+fmt.Sprint("/s", i), fmt.Sprint("unix:uid:", i))
				if err != nil {
					return err
				}
				entries = append(entries, e)
			}
		}
		ids, err := h.issuer.CreateEntries(h.ctx, entries...)
		if err != nil {
			return err
		}
		for n, a := range agents {
			a.entries = ids[n*args.Entries : (n+1)*args.Entries]
		}
	}
	return nil
}

// each does something for every agent, some at a time.
func (h *Herd) each(atATime int, do func(ctx context.Context, n int) error) error {
	ctx, cancel := context.WithTimeout(h.ctx, 10*time.Minute)
	defer cancel()
	errs := make([]error, len(h.agents))
	places := make(chan struct{}, atATime)
	var all sync.WaitGroup
	for n := range h.agents {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			if errs[n] = do(ctx, n); errs[n] != nil {
				cancel()
			}
		})
	}
	all.Wait()
	// Those that were canceled say less than the one for which they were.
	slices.SortStableFunc(errs, func(a, b error) int { return rank(a) - rank(b) })
	return errs[0]
}

func rank(err error) int {
	switch {
	case err == nil:
		return 2
	case errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled:
		return 1
	}
	return 0
}

// Connect has every agent connect, ask what it missed and hold its watch open.
func (h *Herd) Connect(_ None, _ *None) error {
	return h.each(32, func(ctx context.Context, n int) error {
		a := h.agents[n]
		if err := a.dial(time.Hour); err != nil {
			return err
		}
		if err := a.sync(ctx); err != nil {
			return err
		}
		return a.watch(h.ctx)
	})
}

// Leave ends all connections.
func (h *Herd) Leave(_ None, _ *None) error {
	for _, a := range h.agents {
		a.hangUp()
	}
	return nil
}

// What agents have to lose when they come back.
const (
	isUrgent = iota // SVIDs that are about to expire
	isDue           // SVIDs that are to be renewed
	isNew           // nothing yet
)

// Wave is how a herd came back.
type Wave struct {
	// Took is how long each agent took, from the first moment of the wave until it has
	// all SVIDs, by what it had to lose, sorted.
	Took [3][]time.Duration
	// Expired are agents of isUrgent whose SVIDs ended before.
	Expired int
	// SVIDs that were received; connections that were opened; connections and calls that
	// timed out; requests that were refused with a time to come again; what failed else.
	SVIDs, Connections, TimedOut, Refused, Failed int
}

// Return has every agent come back: within the time in which agents look for their
// issuer, each connects, has its own SVID renewed if it is due, connects with that
// again, asks what it missed and has its SVIDs signed.
func (h *Herd) Return(_ None, wave *Wave) error {
	var mu sync.Mutex
	begun := time.Now()
	return h.each(len(h.agents), func(ctx context.Context, n int) error {
		a := h.agents[n]
		kind, life := isDue, 10*time.Minute+rand.N(20*time.Minute)
		switch n * 5 / len(h.agents) {
		case 0: // the first, whose own SVIDs are the oldest
			// From ten seconds to a minute, evenly.
			kind, life = isUrgent, 10*time.Second+time.Duration(n)*50*time.Second*5/time.Duration(len(h.agents))
		case 4:
			kind, life = isNew, 0
		}
		if err := pause(ctx, rand.N(returnWithin)); err != nil {
			return err
		}
		v := visit{herdAgent: a, kind: kind, ends: begun.Add(life)}
		if err := v.until(ctx); err != nil {
			return err
		}
		took := time.Since(begun)
		if err := a.watch(h.ctx); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		wave.Took[kind] = append(wave.Took[kind], took)
		if kind == isUrgent && took > life {
			wave.Expired++
		}
		wave.add(&v.Wave)
		if len(wave.Took[0])+len(wave.Took[1])+len(wave.Took[2]) == len(h.agents) {
			for _, t := range wave.Took {
				slices.Sort(t)
			}
		}
		return nil
	})
}

func (w *Wave) add(o *Wave) {
	w.SVIDs += o.SVIDs
	w.Connections += o.Connections
	w.TimedOut += o.TimedOut
	w.Refused += o.Refused
	w.Failed += o.Failed
}

const (
	// returnWithin is how long agents wait at most before they look for their issuer
	// again; connectWithin and answerWithin how long they wait for a connection and for
	// an answer.
	returnWithin  = 5 * time.Second
	connectWithin = 20 * time.Second
	answerWithin  = 30 * time.Second
)

// herdAgent is one agent.
type herdAgent struct {
	addr    string
	from    net.IP
	svid    *x509svid.SVID
	csr     []byte
	entries []string
	// digest and bundle are what it holds, as the issuer named it.
	digest, bundle []byte

	conn *grpc.ClientConn
	end  context.CancelFunc
}

// dial makes a connection to have replaced what has so much left, 0 for nothing.
func (a *herdAgent) dial(life time.Duration) error {
	protocol := admit.FirstProtocol
	if life > 0 {
		protocol = admit.Protocol(life)
	}
	cert := tls.Certificate{PrivateKey: a.svid.PrivateKey, Leaf: a.svid.Certificates[0]}
	for _, c := range a.svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	creds := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol, "h2"}, InsecureSkipVerify: true,
	})
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: a.from}}
	var err error
	a.conn, err = grpc.NewClient("passthrough:///"+a.addr, grpc.WithTransportCredentials(creds), grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(1<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }))
	return err
}

func (a *herdAgent) hangUp() {
	if a.end != nil {
		a.end()
		a.end = nil
	}
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// sync asks what the agent missed, and takes it.
func (a *herdAgent) sync(ctx context.Context) error {
	first, err := a.ask(ctx, &watchv1.SyncRequest{Digest: a.digest, Bundle: a.bundle})
	if err == nil && first.Differs {
		first, err = a.ask(ctx, &watchv1.SyncRequest{Bundle: a.bundle, Listed: true})
	}
	if err != nil {
		return err
	}
	a.digest = first.Digest
	if first.Bundle != nil {
		a.bundle = first.Bundle.Tag
	}
	return nil
}

func (a *herdAgent) ask(ctx context.Context, req *watchv1.SyncRequest) (first *watchv1.SyncReply, err error) {
	stream, err := watchv1.NewEntryWatchClient(a.conn).Sync(ctx, req)
	for err == nil {
		var reply *watchv1.SyncReply
		if reply, err = stream.Recv(); err == nil {
			if first == nil {
				first = reply
			}
			if !reply.More {
				return first, nil
			}
		}
	}
	return nil, err
}

// watch holds a watch open until the connection ends.
func (a *herdAgent) watch(ctx context.Context) error {
	ctx, a.end = context.WithCancel(ctx)
	stream, err := watchv1.NewEntryWatchClient(a.conn).Watch(ctx, &watchv1.WatchRequest{Revocations: true})
	if err != nil {
		return err
	}
	if _, err = stream.Recv(); err != nil {
		return err
	}
	go func() {
		for err == nil {
			_, err = stream.Recv()
		}
	}()
	return nil
}

// visit is an agent on its way back.
type visit struct {
	*herdAgent
	Wave
	kind int
	// ends is when what it has ends.
	ends time.Time
	// What is done already.
	renewed, synced bool
	failures        int
}

// until tries until all is done.
func (v *visit) until(ctx context.Context) error {
	v.hangUp()
	for {
		err := v.step(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		// As writ-agent: doubling from a quarter of a second to five, less up to a half.
		wait := min(250*time.Millisecond<<min(v.failures, 10), 5*time.Second)
		wait -= rand.N(wait / 2)
		v.failures++
		told, refused := admit.RetryAfter(err)
		switch code := status.Code(err); {
		case refused:
			v.Refused++
			wait = max(wait, told+rand.N(told/2+1))
		case code == codes.DeadlineExceeded:
			v.TimedOut++
			v.hangUp()
		case code == codes.Unavailable:
			v.Failed++
			v.hangUp()
		default:
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// step does what is left to do, until something fails.
func (v *visit) step(ctx context.Context) error {
	if err := v.connect(ctx); err != nil {
		return err
	}
	if v.kind != isNew && !v.renewed {
		if err := v.renew(ctx); err != nil {
			return err
		}
		v.renewed = true
		v.hangUp() // the new one is shown at a new connection
		if err := v.connect(ctx); err != nil {
			return err
		}
	}
	if !v.synced {
		limited, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		if err := v.sync(limited); err != nil {
			return err
		}
		v.synced = true
	}
	return v.sign(ctx)
}

// connect opens a connection if there is none.
func (v *visit) connect(ctx context.Context) error {
	if v.conn != nil {
		return nil
	}
	var life time.Duration
	if v.kind != isNew {
		life = max(time.Until(v.ends), time.Nanosecond)
	}
	if err := v.dial(life); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	v.conn.Connect()
	for {
		switch state := v.conn.GetState(); {
		case state == connectivity.Ready:
			v.Connections++
			return nil
		case state == connectivity.TransientFailure:
			return status.Error(codes.Unavailable, "no connection")
		case !v.conn.WaitForStateChange(ctx, state):
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// renew gets the agent's own SVID renewed, with the key of before.
func (v *visit) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	ctx = admit.WithLife(ctx, time.Until(v.ends))
	reply, err := agentv1.NewAgentClient(v.conn).RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: v.csr}})
	if err != nil {
		return err
	}
	var chain []byte
	for _, der := range reply.GetSvid().GetCertChain() {
		chain = append(chain, der...)
	}
	_, key, err := v.svid.MarshalRaw()
	if err != nil {
		return err
	}
	v.svid, err = x509svid.ParseRaw(chain, key)
	return err
}

func (v *visit) sign(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if v.kind == isNew {
		ctx = admit.ForTheFirstTime(ctx)
	} else {
		ctx = admit.WithLife(ctx, time.Until(v.ends))
	}
	req := &svidv1.BatchNewX509SVIDRequest{}
	for _, id := range v.entries {
		req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: id, Csr: v.csr})
	}
	reply, err := svidv1.NewSVIDClient(v.conn).BatchNewX509SVID(ctx, req)
	if err != nil {
		return err
	}
	for _, r := range reply.GetResults() {
		if codes.Code(r.GetStatus().GetCode()) != codes.OK {
			return errors.New(r.GetStatus().GetMessage())
		}
	}
	v.SVIDs += len(reply.GetResults())
	return nil
}

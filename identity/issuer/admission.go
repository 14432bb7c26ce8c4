package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/identity/admit"
)

const (
	// signAtOnce is how many SVIDs are being signed at once, for each processor:
	// some 50 ms of its time, which is how long the most urgent request waits, and
	// enough to go on with while others wait for the disk.
	signAtOnce = 512
	// signWaiting is how many SVIDs may wait, for each processor, and in all. One
	// waits with its request, most of a kilobyte.
	signWaiting    = 16 << 10
	signWaitingAll = 128 << 10
	// writesTogether is how many changes of the registry share a transaction, or wait
	// for that which is under way. Others are by themselves.
	writesTogether = 128
	// maxWaiting is how many requests may wait, each with its stream and goroutine,
	// some 20 KB, and of one caller.
	maxWaiting          = 4096
	maxWaitingPerCaller = 64
	// shakesAtOnce is how many handshakes are under way, for each processor: some
	// 100 ms of its time, and more than one a millisecond at 100 ms to the peer.
	// shakesWaiting is how many may wait with their first message.
	shakesAtOnce  = 128
	shakesWaiting = 4096
	// shakesAtATime is how many of one address compete at a time: all agents may be
	// behind one.
	shakesAtATime = 512
	// shakeGrace is how long those who have something to lose connect before those who
	// have not.
	shakeGrace = 2 * time.Second
	// Clients of gRPC give up connecting after 20 seconds. Of those the first message
	// may take some, then a handshake may wait for its turn, and then for its peer, so
	// that few are begun in vain.
	connectionTimeout = 20 * time.Second
	helloPatience     = 10 * time.Second
	shakePatience     = 10 * time.Second
	peerPatience      = 5 * time.Second
	// entriesPerUnit is how many entries of a list cost as much as an SVID.
	entriesPerUnit = 64
)

// admission puts what agents ask for in order, when more is asked for than can be
// done.
type admission struct {
	signing *admit.Queue[spiffeid.ID]
	writing *admit.Queue[spiffeid.ID]
	shaking *admit.Queue[netip.Prefix]
}

func newAdmission(atOnce, waiting int) admission {
	processors := runtime.GOMAXPROCS(0)
	if atOnce == 0 {
		atOnce = signAtOnce * processors
	}
	if waiting == 0 {
		waiting = min(signWaiting*processors, signWaitingAll)
	}
	return admission{
		signing: admit.New[spiffeid.ID](admit.Config{
			Capacity: atOnce, Waiting: waiting, Requests: maxWaiting, PerCaller: maxWaitingPerCaller,
		}),
		writing: admit.New[spiffeid.ID](admit.Config{
			Capacity: writesTogether, Waiting: maxWaiting * writesTogether, Requests: maxWaiting, PerCaller: maxWaitingPerCaller,
		}),
		shaking: admit.New[netip.Prefix](admit.Config{
			Capacity: shakesAtOnce * processors, Waiting: shakesWaiting * processors, Requests: shakesWaiting * processors,
			PerCaller: shakesWaiting * processors, AtATime: shakesAtATime, Patience: shakePatience, Grace: shakeGrace,
		}),
	}
}

// Admission is the state of the queues, by class.
type Admission struct {
	Signing, Writing, Handshakes [len(admit.Classes)]admit.Stats
}

// Admission returns what waits, has waited and was refused.
func (i *Issuer) Admission() Admission {
	return Admission{i.admission.signing.Stats(), i.admission.writing.Stats(), i.admission.shaking.Stats()}
}

// turn is what a request is in a queue.
type turn struct {
	class admit.Class
	life  time.Duration
}

// urgent goes before every renewal: it takes a right away, or ends what was begun.
var urgent = turn{admit.Renewal, 1}

// enterSigning returns when so many SVIDs may be signed for the caller, or the like
// be done. leave follows. unstated is what is left of the life of what is renewed for
// a caller who does not say.
func (i *Issuer) enterSigning(ctx context.Context, weight int, unstated time.Duration) (leave func(), err error) {
	class, life := admit.Stated(ctx, unstated)
	return i.enterSigningAs(ctx, turn{class, life}, weight)
}

func (i *Issuer) enterSigningAs(ctx context.Context, t turn, weight int) (leave func(), err error) {
	err = i.admission.signing.Enter(ctx, admit.Request[spiffeid.ID]{Class: t.class, Life: t.life, Caller: callerOf(ctx).id, Weight: weight})
	if err != nil {
		return nil, admit.Status(err)
	}
	return func() { i.admission.signing.Leave(weight) }, nil
}

// enterList is enterSigning for a list of entries: without it, or what changed of it,
// nothing is renewed.
func (i *Issuer) enterList(ctx context.Context, entries int) (leave func(), err error) {
	return i.enterSigning(ctx, 1+entries/entriesPerUnit, i.ca.X509SVIDLife()/2)
}

// enterWriting returns when it is the turn of a change of the registry. leave follows.
func (i *Issuer) enterWriting(ctx context.Context, t turn, weight int) (leave func(), err error) {
	err = i.admission.writing.Enter(ctx, admit.Request[spiffeid.ID]{Class: t.class, Life: t.life, Caller: callerOf(ctx).id, Weight: weight})
	if err != nil {
		return nil, admit.Status(err)
	}
	return func() { i.admission.writing.Leave(weight) }, nil
}

// turnOf is what a call that changes the registry is by who makes it. Of agents it
// is the renewal of what they show; of those that have nothing to show, the first
// SVID.
func (i *Issuer) turnOf(ctx context.Context) turn {
	switch c := callerOf(ctx); {
	case c.kind == svid && isAgentPath(c.id.Path()):
		// Or sooner, where what its workloads have ends before, and waits for this.
		own := c.expires.Sub(i.now())
		if class, life := admit.Stated(ctx, own); class == admit.Renewal && life < own {
			own = life
		}
		return turn{admit.Renewal, own}
	case c.kind == anonymous:
		return turn{admit.First, 0}
	case c.kind == nobody:
		return urgent // this program itself
	}
	return turn{admit.Bulk, 0}
}

// orderedTLS begins only so many handshakes at once that they come to their end
// while their peers still wait for it. The others have cost no more than the look at
// their first message, and are let go when they have to wait for long.
type orderedTLS struct {
	credentials.TransportCredentials
	issuer *Issuer
}

func (i *Issuer) orderedTLS() credentials.TransportCredentials {
	config := i.TLSConfig()
	if !admit.Ordered {
		return credentials.NewTLS(config)
	}
	// It is called when the first message has come, before anything is computed.
	config.GetConfigForClient = i.beginHandshake
	return orderedTLS{credentials.NewTLS(config), i}
}

func (o orderedTLS) Clone() credentials.TransportCredentials {
	return orderedTLS{o.TransportCredentials.Clone(), o.issuer}
}

func (o orderedTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c := &shakingConn{Conn: raw, until: time.Now().Add(connectionTimeout)}
	conn, info, err := o.TransportCredentials.ServerHandshake(c)
	c.done = true
	if c.begun {
		o.issuer.admission.shaking.Leave(1)
	}
	return conn, info, err
}

func (i *Issuer) beginHandshake(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c, ok := hello.Conn.(*shakingConn)
	if !ok {
		return nil, nil // not one of ServerOptions
	}
	var addr netip.Addr
	if at, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		addr = at.Addr().Unmap()
	}
	class, life := admit.StatedBy(hello.SupportedProtos, i.ca.X509SVIDLife()/2)
	err := i.admission.shaking.Enter(context.Background(), admit.Request[netip.Prefix]{Class: class, Life: life, Caller: prefixOf(addr), Weight: 1})
	if err != nil {
		// Closed without an alert: that would be about the client, not about load.
		return nil, errors.Join(err, c.Close())
	}
	c.begun = true
	return nil, nil
}

// shakingConn is the connection of a handshake.
type shakingConn struct {
	net.Conn
	// until is when the handshake must be done.
	until time.Time
	// begun tells that the handshake has its turn, done that it is over. One goroutine
	// has it until then, and nobody changes it later.
	begun, done bool
}

func (c *shakingConn) Read(p []byte) (int, error) {
	if c.done {
		return c.Conn.Read(p)
	}
	// A peer that has begun and does not go on keeps others out.
	patience := helloPatience
	if c.begun {
		patience = peerPatience
	}
	soon := time.Now().Add(patience)
	if soon.After(c.until) {
		soon = c.until
	}
	if err := c.Conn.SetReadDeadline(soon); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if err == nil {
		err = c.Conn.SetReadDeadline(c.until)
	}
	return n, err
}

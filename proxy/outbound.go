package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"

	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/pep/httppep"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/http1"
	"github.com/writ-dev/writ/proxy/http2"
	"github.com/writ-dev/writ/proxy/mtls"
	"github.com/writ-dev/writ/proxy/upstream"
)

// outbound is the way from the application to one service that it calls.
type outbound struct {
	p        *Proxy
	cfg      Upstream
	listener net.Listener
	pool     *upstream.Pool
	http1    *http1.Server
	http2    *http.Server
	forward  *forwarder
	refusals *refusals
	inflight inflight
}

func newOutbound(p *Proxy, cfg Upstream, base context.Context) (*outbound, error) {
	id, err := peerID(cfg.SPIFFEID)
	if err != nil {
		return nil, err
	}
	o := &outbound{p: p, cfg: cfg, refusals: newRefusals(p.enforcer)}
	o.pool = upstream.NewPool(upstream.PoolConfig{
		Address: cfg.Address, Peer: id, Source: p.opts.Source, Revoked: p.revoked(), Ended: o.ended, Now: p.enforcer.Now,
	})
	o.forward = &forwarder{transport: o.pool, scheme: "https", failed: o.failed, log: p.log}
	o.listener, err = upstream.Listen(upstream.ListenConfig{Address: cfg.Listen, UIDs: cfg.AllowUIDs, Refused: o.notAdmitted, Log: p.log.With("upstream", cfg.Name)})
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
	}
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)
	if cfg.Protocol == policy.GRPC {
		o.http2 = http2.NewServer(http2.Config{Handler: o, PrefaceTimeout: p.opts.HeadTimeout, BaseContext: base, ErrorLog: errorLog})
	} else {
		o.http1 = http1.NewServer(http1.Config{Handler: o, HeadTimeout: p.opts.HeadTimeout, Malformed: o.malformed, BaseContext: base, ErrorLog: errorLog, PriorKnowledge: true})
	}
	return o, nil
}

// ServeHTTP implements http.Handler. The application speaks for nobody but
// itself: identity headers that it sends end here.
func (o *outbound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.inflight.enter()
	defer o.inflight.leave()
	r = prepare(r)
	httppep.StripReserved(r.Header)
	if r.RequestURI == "" || r.RequestURI[0] != '/' || r.Method == http.MethodConnect {
		o.answer(w, r, o.p.enforcer.Refuse, pep.Refusal{Status: http.StatusBadRequest, Reason: "request target is not in origin form (RFC 9112, section 3.2.1)"})
		return
	}
	o.forward.ServeHTTP(w, r)
}

// failed answers a request that did not reach its destination.
func (o *outbound) failed(w http.ResponseWriter, r *http.Request, err error) {
	var unverified *mtls.Error
	switch {
	case errors.As(err, &unverified):
		o.p.log.Error("upstream did not prove its identity", "upstream", o.cfg.Name, "address", o.cfg.Address, "error", err)
		o.answer(w, r, o.p.enforcer.Refuse, pep.Refusal{Status: http.StatusBadGateway, Reason: err.Error()})
	case errors.Is(err, errTarget):
		o.answer(w, r, o.p.enforcer.Refuse, pep.Refusal{Status: http.StatusBadRequest, Reason: err.Error()})
	default:
		status := http.StatusBadGateway
		if timedOut(err) {
			status = http.StatusGatewayTimeout
		}
		o.p.log.Warn("upstream failed", "upstream", o.cfg.Name, "address", o.cfg.Address, "error", err)
		o.answer(w, r, o.p.enforcer.Unreachable, pep.Refusal{Status: status, Reason: err.Error()})
	}
}

// answer records what is answered here and not by the other side, so that each
// response that the application gets has its event.
func (o *outbound) answer(w http.ResponseWriter, r *http.Request, record func(context.Context, *policy.Input, pep.Refusal) pep.Result, why pep.Refusal) {
	o.p.opts.Metrics.UpstreamFailed(o.cfg.Name)
	in := o.input(policy.LayerRequest)
	in.Connection.PeerIP, in.Connection.PeerPort = pep.Address(r.RemoteAddr)
	in.Request = policy.Request{
		Protocol: o.cfg.Protocol, Method: r.Method, Host: r.Host, Path: r.URL.EscapedPath(), ContentLength: r.ContentLength,
	}
	why.Reason = fmt.Sprintf("upstream %s: %s", o.cfg.Name, why.Reason)
	httppep.Answer(w, o.cfg.Protocol == policy.GRPC, record(r.Context(), &in, why))
}

// ended puts on record that open connections had to end.
func (o *outbound) ended(err error) {
	o.p.log.Warn("connections to an upstream ended", "upstream", o.cfg.Name, "address", o.cfg.Address, "reason", err)
	in := o.input(policy.LayerConnection)
	o.refusals.record(&in, fmt.Sprintf("upstream %s: open connection ended: %v", o.cfg.Name, err))
}

// malformed puts a head that is no request on record.
func (o *outbound) malformed(nc net.Conn, status int, reason string) (http.Header, []byte) {
	in := o.input(policy.LayerRequest)
	in.Connection.PeerIP, in.Connection.PeerPort = pep.Address(nc.RemoteAddr().String())
	in.Request = policy.Request{Protocol: policy.HTTP, ContentLength: -1}
	return refuseHead(o.p.enforcer, &in, status, reason)
}

func (o *outbound) input(layer string) policy.Input {
	own := o.p.id
	return policy.Input{
		Direction: policy.Outbound, Layer: layer, TokenStatus: policy.TokenAbsent,
		Source:      policy.Source{ID: own.String(), TrustDomain: own.TrustDomain().Name(), Path: own.Path(), Authn: policy.AuthnNone},
		Destination: policy.Destination{Service: o.cfg.Name, ID: o.cfg.SPIFFEID},
	}
}

// notAdmitted puts a local connection that was refused on record. Who it was
// has no SPIFFE ID.
func (o *outbound) notAdmitted(peer net.Addr, reason string) {
	o.p.opts.Metrics.NotAdmitted()
	in := o.input(policy.LayerConnection)
	in.Source = policy.Source{Authn: policy.AuthnNone}
	in.Connection.PeerIP, in.Connection.PeerPort = pep.Address(peer.String())
	o.refusals.record(&in, reason)
}

func (o *outbound) serve(run *runner) {
	name := "outbound listener of upstream " + o.cfg.Name
	if o.http1 != nil {
		run.start(name, func() error { return served(o.http1.Serve(o.listener)) })
		return
	}
	run.start(name, func() error { return served(o.http2.Serve(o.listener)) })
}

func (o *outbound) shutdown(ctx context.Context) {
	if o.http1 != nil {
		drain(ctx, o.http1.Shutdown)
	} else {
		drain(ctx, o.http2.Shutdown)
	}
	o.inflight.wait(ctx)
}

func (o *outbound) close() {
	if o.http1 != nil {
		_ = o.http1.Close()
	} else {
		_ = o.http2.Close()
	}
	_ = o.listener.Close()
	o.pool.CloseIdle()
}

// bypass says who else can speak as this workload.
func (u *Upstream) bypass() string {
	if _, ok := upstream.UnixPath(u.Listen); ok {
		return ""
	}
	uids := u.AllowUIDs
	if len(uids) == 0 {
		uids = []int{os.Geteuid()}
	}
	uids = slices.Sorted(slices.Values(uids))
	return fmt.Sprintf("upstream %s listens on TCP %s: every process of uid %s can call as this workload (processes of one uid are not isolated from each other)", u.Name, u.Listen, join(uids))
}

func join(uids []int) string {
	var b []byte
	for i, uid := range uids {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = fmt.Append(b, uid)
	}
	return string(b)
}

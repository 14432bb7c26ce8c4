package sds

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/workload"
)

// stream is one StreamSecrets call.
type stream struct {
	*service
	secretv3.SecretDiscoveryService_StreamSecretsServer
	caller *workload.Caller

	// What is asked for: with subscribed and no names, everything.
	subscribed bool
	started    bool
	names      []string
	spiffe     bool

	// What was sent last.
	sent         uint64 // responses; the last one's nonce
	version      string
	certificates []string
	answered     bool // since the names last changed
}

// StreamSecrets sends what is asked for, and sends it again whenever it has
// become another.
func (s *service) StreamSecrets(grpc secretv3.SecretDiscoveryService_StreamSecretsServer) (err error) {
	ctx, answer := s.api.Answer(grpc.Context())
	defer func() { answer.End(err) }()
	caller, err := s.api.Caller(ctx)
	if err != nil {
		return err
	}
	st := &stream{service: s, SecretDiscoveryService_StreamSecretsServer: grpc, caller: caller}
	requests := st.receive(grpc.Context())
	for pushed := false; ; {
		g, changed, err := caller.Grant(ctx)
		before := st.sent
		if err == nil {
			err = st.push(g)
		}
		if pushed && (err != nil || st.sent > before) {
			answer = s.api.Pushed(ctx, g)
		}
		if err != nil {
			return st.end(g, err)
		}
		answer.End(nil) // the first ends with the attestation and what is made for it
		ctx, pushed = grpc.Context(), false
		select {
		case r := <-requests:
			if r.err != nil {
				return ended(r.err)
			}
			if err := st.take(r.req); err != nil {
				return err
			}
		case <-changed:
			pushed = true
		case <-caller.Due():
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.api.Stopping():
			return status.Error(codes.Unavailable, "the agent is stopping")
		}
	}
}

type received struct {
	req *discoveryv3.DiscoveryRequest
	err error
}

// receive ends with the call: that is when Recv fails.
func (st *stream) receive(ctx context.Context) <-chan received {
	ch := make(chan received)
	go func() {
		for {
			req, err := st.Recv()
			select {
			case ch <- received{req, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return ch
}

// ended is how a call ends whose client said that it has no more requests.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// take reads a request: the first one, another list of names, or what became of
// the last response.
func (st *stream) take(req *discoveryv3.DiscoveryRequest) error {
	if err := checkType(req); err != nil {
		return err
	}
	ctx, log := st.Context(), st.c.Log.With("pid", st.caller.PID(), "uid", st.caller.UID())
	if st.sent > 0 && req.ResponseNonce != st.nonce() {
		// Sent before the last response arrived. Its answer will follow.
		log.DebugContext(ctx, "Envoy answers an older response", "nonce", req.ResponseNonce, "last", st.nonce())
		return nil
	}
	if d := req.ErrorDetail; d != nil {
		// It goes on with what it had. The same again would fail again; what
		// comes next is sent.
		st.c.Rejected()
		log.WarnContext(ctx, "Envoy did not take its secrets", "names", st.names, "version", st.version, "error", d.Message)
	}
	wanted := names(req)
	if !st.started {
		// Only the first request has to say who asks.
		st.started, st.spiffe = true, st.validator(req.Node)
		st.subscribed, st.names = true, wanted
		return nil
	}
	if len(wanted) == 0 && len(st.names) > 0 {
		// An empty list after names means that none is wanted any more.
		st.subscribed, st.names, st.certificates = false, nil, nil
		return nil
	}
	if len(wanted) > 0 && (!st.subscribed || !slices.Equal(wanted, st.names)) {
		st.subscribed, st.names, st.answered = true, wanted, false
	}
	return nil
}

func (st *stream) nonce() string { return strconv.FormatUint(st.sent, 10) }

// push sends what is asked for, unless that is what was sent last.
func (st *stream) push(g workload.Grant) error {
	if !st.subscribed {
		return nil
	}
	set, err := st.build(g, st.names, st.spiffe)
	if err != nil {
		return err
	}
	resp, err := set.response()
	if err != nil || st.answered && resp.VersionInfo == st.version {
		return err
	}
	if err := st.caller.Alive(); err != nil {
		return err
	}
	if err := st.send(resp); err != nil {
		return err
	}
	st.answered, st.version, st.certificates = true, resp.VersionInfo, set.certificates
	return nil
}

func (st *stream) send(resp *discoveryv3.DiscoveryResponse) error {
	st.sent++
	resp.Nonce = st.nonce()
	return st.Send(resp)
}

// end takes away, where the caller lost a right, the certificates that came of
// it. g is what is left.
func (st *stream) end(g workload.Grant, cause error) error {
	if code := status.Code(cause); code != codes.PermissionDenied && code != codes.InvalidArgument {
		return cause
	}
	left := builder{Names: st.c.Names, grant: g}
	var lost []string
	for _, name := range st.certificates {
		if !left.has(name) {
			lost = append(lost, name)
		}
	}
	if len(lost) == 0 {
		return cause
	}
	resp, err := worthless(lost)
	if err == nil {
		err = st.send(resp)
	}
	if err != nil {
		st.c.Log.WarnContext(st.Context(), "certificates could not be taken from Envoy, which has them until they expire", "names", lost, "error", err)
		return cause
	}
	st.c.Log.InfoContext(st.Context(), "certificates taken from Envoy", "pid", st.caller.PID(), "uid", st.caller.UID(), "names", lost)
	return cause
}

package httppep

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/policy"
)

// Config is what a Handler is made of.
type Config struct {
	Enforcer *pep.Enforcer
	// Next sees what was allowed. The context of its request ends when the
	// right to it ends: with the caller's SVID, by a new policy revision, or when
	// the decision expires.
	Next http.Handler
	// Peer tells who sent the request. An error refuses it.
	Peer func(*http.Request) (*pep.Peer, error)
	// GRPC refuses everything that is not a gRPC call, so that a request cannot
	// choose under which protocol it is decided.
	GRPC bool
	// Port is where the request arrived.
	Port int
	// MaxHeadBytes limits names and values of the headers together; 0 leaves
	// that to the server.
	MaxHeadBytes int
}

// Handler is the enforcement point in front of Next.
type Handler struct {
	cfg   Config
	ownID string
	calls sync.Pool
	// since is closed by the first change of policy after New.
	since <-chan struct{}

	// expiring tells Watch that a decision with an end was made.
	expiring chan struct{}

	mu sync.Mutex
	// open holds the number of each open call: a call is reused.
	open map[*call]uint64
	last uint64
}

// call is one request from its head to the end of its response.
type call struct {
	in     policy.Input
	peer   *pep.Peer
	cancel context.CancelCauseFunc
	// expires is when the decision ends, zero if it does not.
	expires time.Time
}

// ErrRightEnded is the cause with which the context of an open request is
// cancelled when its caller is not allowed any more.
var ErrRightEnded = errors.New("the right to this request has ended")

// New makes a Handler. Watch must run for open requests to be decided again.
func New(cfg Config) (*Handler, error) {
	if cfg.Enforcer == nil || cfg.Next == nil || cfg.Peer == nil {
		return nil, errors.New("http enforcement point needs an enforcer, a next handler, and a way to know the peer")
	}
	h := &Handler{cfg: cfg, ownID: cfg.Enforcer.ID().String(), since: cfg.Enforcer.Changed(), expiring: make(chan struct{}, 1), open: map[*call]uint64{}}
	h.calls.New = func() any { return new(call) }
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	StripReserved(r.Header)
	c := h.calls.Get().(*call)
	defer h.release(c)
	peer, err := h.cfg.Peer(r)
	if err != nil {
		peer = &pep.Peer{}
		peer.IP, peer.Port = pep.Address(r.RemoteAddr)
	}
	c.peer = peer
	in := &c.in
	refusal := h.describe(in, peer, r)
	switch {
	case err != nil:
		refusal = pep.Refusal{Status: http.StatusUnauthorized, Reason: err.Error()}
	case peer.Expired(h.cfg.Enforcer.Now()):
		// The handshake was long ago; what it proved has ended.
		w.Header()["Connection"] = []string{"close"}
		refusal = pep.Refusal{Status: http.StatusUnauthorized, Reason: "the X509-SVID of the caller has expired on an open connection"}
	}
	changed := h.cfg.Enforcer.Changed()
	var res pep.Result
	if refusal.Status != 0 {
		res = h.cfg.Enforcer.Refuse(r.Context(), in, refusal)
	} else {
		res = h.cfg.Enforcer.Enforce(r.Context(), in)
	}
	if !res.Allow {
		Answer(w, h.cfg.GRPC && res.Status != http.StatusUnsupportedMediaType, res)
		return
	}
	if res.DecisionID != "" {
		w.Header()[DecisionID] = []string{res.DecisionID}
	}
	setIdentity(r.Header, peer, h.ownID, res.DecisionID)
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	c.cancel, c.expires = cancel, res.Expires
	h.enter(c)
	defer h.leave(c)
	select {
	case <-changed:
		// The revision changed between the decision and the entry: Watch may
		// have looked before this request was there to be seen.
		h.recheck(ctx, []openCall{h.copy(c)})
	default:
	}
	h.cfg.Next.ServeHTTP(w, r.WithContext(ctx))
}

// describe fills in, and says why the request must not be decided.
func (h *Handler) describe(in *policy.Input, peer *pep.Peer, r *http.Request) (refusal pep.Refusal) {
	bad := func(status int, reason string) {
		if refusal.Status == 0 {
			refusal = pep.Refusal{Status: status, Reason: reason}
		}
	}
	in.Direction, in.Layer, in.TokenStatus = policy.Inbound, policy.LayerRequest, policy.TokenAbsent
	in.Destination.Port = h.cfg.Port
	peer.Describe(in)

	req := &in.Request
	path, query, _ := strings.Cut(r.RequestURI, "?")
	req.Protocol, req.Method, req.Host, req.Path = policy.HTTP, r.Method, r.Host, path
	req.Headers, req.ContentLength = headerValues{r.Header}, r.ContentLength

	switch r.Method {
	case http.MethodConnect, http.MethodTrace:
		// CONNECT would make the application a tunnel; TRACE would send our
		// identity headers back to the caller.
		bad(http.StatusMethodNotAllowed, "method "+r.Method)
	}
	if h.cfg.MaxHeadBytes > 0 && headBytes(r) > h.cfg.MaxHeadBytes {
		bad(http.StatusRequestHeaderFieldsTooLarge, "request head too large")
	}
	if path == "*" || path == "" || path[0] != '/' {
		bad(http.StatusBadRequest, "request target is not in origin form (RFC 9112, section 3.2.1)")
		// Not a path: kept out of the record's path field if it cannot be text.
		req.Path = strings.ToValidUTF8(path, "\uFFFD")
	} else {
		var why string
		if req.Segments, why = policy.SplitPath(req.Segments[:0], path, h.cfg.Enforcer.AllowDoubleSlash()); why != "" {
			bad(http.StatusBadRequest, why)
			req.Path = strings.ToValidUTF8(path, "\uFFFD")
		}
	}
	values, why := policy.ParseQuery(query)
	if why != "" {
		bad(http.StatusBadRequest, why)
	}
	if values == nil {
		req.Query = noValues
	} else {
		req.Query = values
	}
	// HTTP/2 carries :authority and may carry host as well (RFC 9113, section
	// 8.3.1): an application might look at either.
	if hosts, ok := r.Header["Host"]; ok {
		if len(hosts) != 1 || hosts[0] != r.Host {
			bad(http.StatusBadRequest, "host and :authority disagree")
		}
		delete(r.Header, "Host")
	}
	if why := pep.CheckHost(r.Host); why != "" {
		bad(http.StatusBadRequest, why)
		req.Host = strings.ToValidUTF8(r.Host, "\uFFFD")
	}
	if h.cfg.GRPC {
		h.describeCall(req, r, bad)
	}
	return refusal
}

func (h *Handler) describeCall(req *policy.Request, r *http.Request, bad func(int, string)) {
	req.Protocol = policy.GRPC
	if r.Method != http.MethodPost || r.ProtoMajor != 2 || !isGRPC(r.Header) {
		bad(http.StatusUnsupportedMediaType, "not a gRPC request at a gRPC service")
		return
	}
	var ok bool
	if req.GRPCService, req.GRPCMethod, ok = policy.SplitMethod(req.Segments); !ok {
		bad(http.StatusBadRequest, "path is not /service/method")
	}
	if r.URL.RawQuery != "" {
		bad(http.StatusBadRequest, "gRPC request with a query")
	}
}

var noValues = policy.MapValues(nil)

func isGRPC(h http.Header) bool {
	ct := h["Content-Type"]
	if len(ct) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(ct[0], "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

func headBytes(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return n
}

func (h *Handler) release(c *call) {
	segments := c.in.Request.Segments
	clear(segments)
	*c = call{}
	c.in.Request.Segments = segments[:0]
	h.calls.Put(c)
}

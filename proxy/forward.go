package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/pep/httppep"
)

// prepare takes off a request what ends at this hop, before anybody decides on
// it, so that what is decided is what is forwarded.
func prepare(r *http.Request) *http.Request {
	upgrade := stripHop(r.Header)
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // or net/http adds its own
	}
	if r.Host == "" && !r.ProtoAtLeast(1, 1) {
		// HTTP/1.0 knows no Host; the other side gets one.
		r.Host = noHost
	}
	// What goes through a tunnel is decided once. A WebSocket is one exchange
	// (RFC 6455, section 4.1); h2c, or TLS, would carry requests that nobody
	// decides. A server may ignore an upgrade (RFC 9110, section 7.8), and HTTP/2
	// has none (RFC 9113, section 8.6).
	if r.Method == http.MethodGet && r.ProtoMajor == 1 && r.ProtoMinor == 1 && strings.EqualFold(upgrade, "websocket") {
		return r.WithContext(context.WithValue(r.Context(), upgradeKey{}, upgrade))
	}
	return r
}

// forwarder carries a request to the other side and the response back, as it
// comes: nothing is buffered, decoded or spelled differently.
type forwarder struct {
	transport http.RoundTripper
	// scheme is http, or https where the transport speaks TLS.
	scheme string
	// fromApp is true where the response comes from the application and may
	// not carry our headers.
	fromApp bool
	// failed answers a request that could not be carried.
	failed func(w http.ResponseWriter, r *http.Request, err error)
	log    *slog.Logger
}

// noHost is the host of a request that came without one.
const noHost = "upstream"

// upgradeKey holds the protocol of an upgrade in a request's context.
type upgradeKey struct{}

var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	target, ok := f.target(r)
	if !ok {
		f.failed(w, r, errTarget)
		return
	}
	informational := &informational{w: w, stopped: !r.ProtoAtLeast(1, 1)}
	defer informational.stop()
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: informational.pass})
	out := r.WithContext(ctx)
	out.URL, out.RequestURI, out.Close, out.TransferEncoding = target, "", false, nil
	upgrade, _ := r.Context().Value(upgradeKey{}).(string)
	if upgrade != "" {
		// The header may be read by somebody who decides this request again.
		out.Header = out.Header.Clone()
		out.Header["Connection"], out.Header["Upgrade"] = []string{"Upgrade"}, []string{upgrade}
	}
	body, closeBody := f.attachBody(w, r, out)
	defer closeBody()
	res, err := f.transport.RoundTrip(out)
	informational.stop()
	if v, ok := out.Body.(*view); ok {
		v.settle()
	}
	early := body != nil && !body.complete()
	if early && r.ProtoMajor == 1 {
		// What is left of the body must never be read as the next request.
		w.Header()["Connection"] = []string{"close"}
	}
	if err != nil {
		if r.Context().Err() != nil {
			// The client left, or its right ended: nobody to tell.
			panic(http.ErrAbortHandler)
		}
		f.failed(w, r, err)
		return
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		f.switchProtocols(w, r, res, upgrade)
		return
	}
	defer res.Body.Close()
	f.respond(w, r, res)
	if early && r.ProtoMajor == 1 && !body.complete() {
		// The client may be waiting for the answer before it sends the rest, and
		// closing the body waits for the client.
		_ = http.NewResponseController(w).Flush()
	}
}

// lingering is how long a client may go on sending a body that nobody wants.
const lingering = 5 * time.Second

// attachBody gives out the body of r, ready for a transport. closeBody returns
// when nobody reads it any more.
func (f *forwarder) attachBody(w http.ResponseWriter, r, out *http.Request) (body *requestBody, closeBody func()) {
	if r.ContentLength == 0 {
		out.Body, out.Trailer = nil, nil
		return nil, func() {}
	}
	body = newRequestBody(r)
	out.Body, out.Trailer = body, body.trailer
	end := func() { body.Close() }
	if r.ProtoMajor == 1 {
		// Without this net/http swallows the rest of the body before the
		// response may begin.
		_ = http.NewResponseController(w).EnableFullDuplex()
	} else {
		again := newReplay(body)
		out.Body, _ = again.view()
		out.GetBody = again.view
		end = again.close
	}
	// The transport may still be reading when the response has ended, and while
	// it waits for the client's next bytes it does not look at the context.
	stop := context.AfterFunc(out.Context(), func() { interrupt(w, r, 0) })
	return body, func() {
		stop()
		if !body.complete() {
			interrupt(w, r, lingering)
		}
		end()
	}
}

var errTarget = errors.New("a request target that begins with // cannot be forwarded byte for byte")

// target gives a URL that net/http writes as r.RequestURI, byte for byte.
func (f *forwarder) target(r *http.Request) (*url.URL, bool) {
	u := &url.URL{Scheme: f.scheme, Host: noHost, Opaque: r.RequestURI}
	if strings.HasPrefix(r.RequestURI, "//") {
		// net/http takes an opaque // for a host; path and query then go by
		// their parts, which is exact for all that RFC 3986 allows in a path.
		u.Opaque, u.Path, u.RawPath = "", r.URL.Path, r.URL.RawPath
		u.RawQuery, u.ForceQuery = r.URL.RawQuery, r.URL.ForceQuery
	}
	return u, u.RequestURI() == r.RequestURI
}

func (f *forwarder) respond(w http.ResponseWriter, r *http.Request, res *http.Response) {
	stripHop(res.Header)
	if f.fromApp {
		httppep.StripReserved(res.Header)
	}
	h := w.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	announced := make([]string, 0, len(res.Trailer))
	for name := range res.Trailer {
		if !f.fromApp || !httppep.Reserved(name) {
			announced = append(announced, name)
		}
	}
	if len(announced) > 0 {
		h["Trailer"] = []string{strings.Join(announced, ", ")}
	}
	w.WriteHeader(res.StatusCode)
	if err := copyBody(w, res); err != nil {
		if r.Context().Err() == nil {
			f.log.Debug("response broke off", "error", err)
		}
		// The client must see that the response is not whole.
		panic(http.ErrAbortHandler)
	}
	for name, values := range res.Trailer {
		if f.fromApp && httppep.Reserved(name) {
			continue
		}
		// Under this prefix net/http also sends what was not announced.
		h[http.TrailerPrefix+name] = values
	}
	for _, name := range announced {
		// Announced: sent under its own name.
		h[name] = h[http.TrailerPrefix+name]
		delete(h, http.TrailerPrefix+name)
	}
}

// copyBody passes on each piece as it arrives. What is not known to end soon
// is flushed at once, its head too: the next piece may be long in coming.
func copyBody(w http.ResponseWriter, res *http.Response) error {
	if res.Body == http.NoBody {
		// No flush: a gRPC response of trailers only must stay one frame.
		return nil
	}
	flush := func() error { return http.NewResponseController(w).Flush() }
	left := res.ContentLength
	if left < 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := res.Body.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			left -= int64(n)
			if res.ContentLength < 0 || left > 0 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// informational passes 1xx responses on (RFC 9110, section 15.2) until the
// final response is there.
type informational struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	stopped bool
}

func (i *informational) pass(code int, header textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped || code == http.StatusSwitchingProtocols {
		return nil
	}
	h := i.w.Header()
	before := h.Clone()
	for name, values := range header {
		if !httppep.Reserved(name) {
			h[name] = values
		}
	}
	i.w.WriteHeader(code)
	clear(h)
	for name, values := range before {
		h[name] = values
	}
	return nil
}

func (i *informational) stop() {
	i.mu.Lock()
	i.stopped = true
	i.mu.Unlock()
}

// requestBody hands a request's body to a transport, and its trailers without
// those that only we may set or that were not announced.
type requestBody struct {
	io.ReadCloser
	request *http.Request
	trailer http.Header
	read    atomic.Int64
	eof     atomic.Bool
}

func newRequestBody(r *http.Request) *requestBody {
	b := &requestBody{ReadCloser: r.Body, request: r}
	for name := range r.Trailer {
		if httppep.Reserved(name) {
			continue
		}
		if b.trailer == nil {
			b.trailer = http.Header{}
		}
		b.trailer[name] = nil
	}
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read.Add(int64(n))
	if err == io.EOF {
		for name := range b.trailer {
			b.trailer[name] = b.request.Trailer[name]
		}
		b.eof.Store(true)
	}
	return n, err
}

// complete reports whether the client has sent all of the body. Once the other
// side has received all of it, this is true.
func (b *requestBody) complete() bool {
	return b.eof.Load() || b.request.ContentLength >= 0 && b.read.Load() >= b.request.ContentLength
}

// interrupt ends, after a time, a Read of the request's body that is waiting
// for the client.
func interrupt(w http.ResponseWriter, r *http.Request, after time.Duration) {
	if r.ProtoMajor == 1 {
		// Close would wait for the Read; the connection is not used again.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(after))
		return
	}
	_ = r.Body.Close()
}

// timedOut reports whether err is a timeout of the other side.
func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

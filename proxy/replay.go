package proxy

import (
	"errors"
	"io"
	"sync"
)

// replayLimit is how much of a request's body is kept for another try, bytes.
const replayLimit = 64 << 10

var errNoReplay = errors.New("the request's body cannot be sent again")

// replay lets a transport send a body again from its beginning, as long as
// there is no response and the body is small. HTTP/2 needs it: a request that
// meets the GOAWAY of a connection that ends was not processed (RFC 9113,
// section 6.8) and belongs on another connection, though its body has already
// been sent.
//
// The transport reads views. A view that is closed gives up waiting, and what
// was on its way goes to the next view.
type replay struct {
	body *requestBody

	mu   sync.Mutex
	cond sync.Cond
	buf  []byte
	err  error
	// reading: one Read of body is under way, in a goroutine or a direct view.
	reading bool
	// kept: buf holds the body from its beginning.
	kept bool
}

func newReplay(body *requestBody) *replay {
	r := &replay{body: body, kept: true}
	r.cond.L = &r.mu
	return r
}

// view gives the body from its beginning. It has the form of
// http.Request.GetBody.
func (r *replay) view() (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.kept {
		return nil, errNoReplay
	}
	return &view{replay: r}, nil
}

// settle is called when there is a response or an error: the last view reads
// the rest without a copy.
func (r *replay) settle() {
	r.mu.Lock()
	r.kept = false
	r.mu.Unlock()
}

// close closes the body and waits until nobody reads it.
func (r *replay) close() {
	r.body.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.reading {
		r.cond.Wait()
	}
}

// fill reads the body once.
func (r *replay) fill() {
	chunk := copyBuffers.Get().(*[32 << 10]byte)
	n, err := r.body.Read(chunk[:])
	r.mu.Lock()
	r.buf = append(r.buf, chunk[:n]...)
	r.err, r.reading = err, false
	if len(r.buf) > replayLimit {
		r.kept = false
	}
	r.cond.Broadcast()
	r.mu.Unlock()
	copyBuffers.Put(chunk)
}

type view struct {
	*replay
	off    int
	closed bool
}

func (v *view) Read(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		switch {
		case v.closed:
			return 0, errNoReplay
		case v.off < len(v.buf):
			n := copy(p, v.buf[v.off:])
			v.off += n
			return n, nil
		case v.err != nil:
			return 0, v.err
		case v.reading:
		case v.kept:
			v.reading = true
			go v.fill() // close waits for it
		default:
			v.reading = true
			v.mu.Unlock()
			n, err := v.body.Read(p)
			v.mu.Lock()
			v.err, v.reading = err, false
			v.cond.Broadcast()
			return n, err
		}
		v.cond.Wait()
	}
}

func (v *view) Close() error {
	v.mu.Lock()
	v.closed = true
	final := !v.kept
	v.cond.Broadcast()
	v.mu.Unlock()
	if final {
		return v.body.Close()
	}
	return nil
}

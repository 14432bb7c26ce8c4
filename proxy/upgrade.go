package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/pep/httppep"
)

// switchProtocols completes an upgrade (RFC 9110, section 7.8) and copies
// bytes until one side has had enough or the right to the connection ends.
func (f *forwarder) switchProtocols(w http.ResponseWriter, r *http.Request, res *http.Response, asked string) {
	back, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		f.failed(w, r, errors.New("the other side switched protocols on a connection that cannot"))
		return
	}
	defer back.Close()
	answered := res.Header.Get("Upgrade")
	if asked == "" || !strings.EqualFold(asked, answered) {
		f.failed(w, r, errors.New("the other side switched to a protocol that was not asked for"))
		return
	}
	client, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		f.failed(w, r, err)
		return
	}
	defer client.Close()
	_ = client.SetDeadline(time.Time{})

	stripHop(res.Header)
	if f.fromApp {
		httppep.StripReserved(res.Header)
	}
	h := w.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{answered}
	if err := writeSwitch(rw, h); err != nil {
		return
	}
	tunnel(r.Context(), client, rw.Reader, back)
}

func writeSwitch(rw *bufio.ReadWriter, h http.Header) error {
	if _, err := rw.WriteString("HTTP/1.1 101 Switching Protocols\r\n"); err != nil {
		return err
	}
	if err := h.Write(rw); err != nil {
		return err
	}
	if _, err := rw.WriteString("\r\n"); err != nil {
		return err
	}
	return rw.Flush()
}

// tunnel copies both ways and returns when both have ended. early holds what
// the client sent before the switch.
func tunnel(ctx context.Context, client net.Conn, early io.Reader, back io.ReadWriteCloser) {
	// A broken half breaks the other; a half that ends well may be followed by
	// more from the other, unless its end cannot be passed on.
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		back.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	pass := func(dst io.Writer, src io.Reader, end any) {
		buf := copyBuffers.Get().(*[32 << 10]byte)
		defer copyBuffers.Put(buf)
		_, err := io.CopyBuffer(onlyWriter{dst}, onlyReader{src}, buf[:])
		if half, ok := end.(interface{ CloseWrite() error }); ok && err == nil && half.CloseWrite() == nil {
			return
		}
		client.Close()
		back.Close()
	}
	wg.Go(func() { pass(back, early, back) })
	wg.Go(func() { pass(client, back, client) })
	wg.Wait()
}

// onlyReader and onlyWriter hide methods that would bypass the buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

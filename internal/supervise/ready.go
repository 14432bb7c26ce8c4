package supervise

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// notify is the socket on which one start of a program says that it is ready, and
// before that what it waits for (sd_notify(3), READY=1 and STATUS=). Each start has its own, so that a dead predecessor cannot
// speak for its successor. The directory is ours alone, and so are the
// senders.
type notify struct {
	path  string
	conn  *net.UnixConn
	ready chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	status string // what it said last
}

func listenNotify(path string) (*notify, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notification socket: %w", err)
	}
	n := &notify{path: path, conn: conn, ready: make(chan struct{})}
	n.wg.Go(n.read)
	return n, nil
}

func (n *notify) read() {
	buf := make([]byte, 4096)
	said := false
	for {
		size, err := n.conn.Read(buf)
		if err != nil {
			return
		}
		ready, status := parseNotification(string(buf[:size]))
		if status != "" {
			n.mu.Lock()
			n.status = status
			n.mu.Unlock()
		}
		if ready && !said {
			said = true
			close(n.ready)
		}
	}
}

// late is the error of a program that was not ready in time, with what it said that it
// is at.
func (n *notify) late(after time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.status == "" {
		return fmt.Errorf("not ready after %s", after)
	}
	return fmt.Errorf("not ready after %s: %s", after, n.status)
}

// parseNotification finds READY=1 and STATUS=… in a notification, which is lines of
// NAME=value.
func parseNotification(msg string) (ready bool, status string) {
	for line := range strings.Lines(msg) {
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, "STATUS="); ok {
			status = text
		}
		ready = ready || line == "READY=1"
	}
	return ready, status
}

func (n *notify) close() {
	n.conn.Close()
	n.wg.Wait()
	os.Remove(n.path)
}

// Times between two attempts to connect.
const (
	dialFirst = 2 * time.Millisecond
	dialMax   = 50 * time.Millisecond
)

// accepts closes the channel once addr accepts a TCP connection. stop ends the
// attempts and waits for them.
func accepts(ctx context.Context, addr string) (ready chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ready = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait := dialFirst; ; wait = min(2*wait, dialMax) {
			var d net.Dialer
			if conn, err := d.DialContext(ctx, "tcp", addr); err == nil {
				conn.Close()
				close(ready)
				return
			}
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	})
	return ready, func() { cancel(); wg.Wait() }
}

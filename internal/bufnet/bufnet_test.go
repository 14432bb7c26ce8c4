package bufnet

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Deadlines that are over end what waits, many at a time.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen(16)
		defer l.Close()
		var wg sync.WaitGroup
		end := func(c net.Conn, err error) {
			for range 20 {
				if err == nil {
					err = c.SetWriteDeadline(time.Now())
				}
			}
			if err == nil {
				err = c.SetReadDeadline(time.Now().Add(-time.Second))
			}
			if err != nil {
				t.Error(err)
				return
			}
			_, err = c.Read(make([]byte, 1))
			if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
				t.Errorf("the read ended with %v, want a timeout", err)
			}
		}
		for range 50 {
			wg.Go(func() { end(l.Accept()) })
			wg.Go(func() { end(l.DialContext(t.Context())) })
		}
		wg.Wait()
	})
}

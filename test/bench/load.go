package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// load is an open loop: request i is due at i/rate seconds, whether or not
// earlier ones were answered, and its latency counts from when it was due. A
// server that stalls is charged for every request that had to wait.
type load struct {
	addr        string // host:port
	rate        int    // requests per second
	connections int
	length      time.Duration
}

// run gives the latencies, sorted. Every response must be 200.
func (l load) run(ctx context.Context) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*l.length+10*time.Second)
	defer cancel()
	conns := make([]net.Conn, l.connections)
	for i := range conns {
		var err error
		if conns[i], err = (&net.Dialer{}).DialContext(ctx, "tcp", l.addr); err != nil {
			return nil, err
		}
		defer conns[i].Close()
	}
	// Reads end when the context does.
	defer context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})()
	total := int(l.length.Seconds() * float64(l.rate))
	latencies := make([]time.Duration, total)
	errs := make([]error, l.connections)
	start := time.Now().Add(50 * time.Millisecond)
	var done sync.WaitGroup
	for i, conn := range conns {
		done.Go(func() {
			errs[i] = l.drive(conn, func(request func(due time.Time) (time.Duration, error)) error {
				for n := i; n < total; n += l.connections {
					took, err := request(start.Add(time.Duration(n) * time.Second / time.Duration(l.rate)))
					if err != nil {
						return fmt.Errorf("request %d: %w", n, err)
					}
					latencies[n] = took
				}
				return nil
			})
			if errs[i] != nil {
				cancel() // one failure ends the run
			}
		})
	}
	done.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(latencies)
	return latencies, nil
}

// drive gives each a function that sends one request when it is due.
func (l load) drive(conn net.Conn, each func(func(time.Time) (time.Duration, error)) error) error {
	in := bufio.NewReader(conn)
	out := []byte("GET / HTTP/1.1\r\nHost: " + l.addr + "\r\n\r\n")
	return each(func(due time.Time) (time.Duration, error) {
		if err := sleepUntil(due); err != nil {
			return 0, err
		}
		if _, err := conn.Write(out); err != nil {
			return 0, err
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return 0, err
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return 0, err
		}
		if res.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("status %s", res.Status)
		}
		return time.Since(due), nil
	})
}

// sleepUntil blocks the thread: the runtime's own timers are late by up to a
// millisecond, which is more than what is measured.
func sleepUntil(due time.Time) error {
	for {
		left := time.Until(due)
		if left <= 0 {
			return nil
		}
		ts := unix.NsecToTimespec(left.Nanoseconds())
		if err := unix.Nanosleep(&ts, nil); err != nil && err != unix.EINTR {
			return err
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// rates are the fixed rates at which latency is measured, requests per second.
var rates = []int{1000, 4000}

// pair measures client → plaintext → proxy → mTLS → proxy → plaintext → nginx
// answering 100 bytes, with everything on one machine. The writ pair decides
// and records each request; the nginx pair does neither.
func pair(ctx context.Context, b *bench) (rows []Row, err error) {
	if err := b.ensure(ctx, "nginx", "wrk"); err != nil {
		return nil, err
	}
	app, stopApp, err := b.backend(ctx)
	if err != nil {
		return nil, err
	}
	defer stopApp()
	peer, err := b.nginxPair(ctx, app)
	if err != nil {
		return nil, err
	}
	defer peer.stop()
	m, err := b.mesh(ctx, app)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.stop()) }()

	addrs := map[string]string{ours: m.addr, "nginx": peer.addr, "direct": app}
	var s samples
	err = b.rotate([]string{ours, "nginx", "direct"}, func(subject string) error {
		return pairRound(ctx, b, &s, subject, addrs[subject])
	})
	return s.rows(), err
}

func pairRound(ctx context.Context, b *bench, s *samples, subject, addr string) error {
	if _, err := wrk(ctx, addr, time.Second); err != nil { // warm
		return err
	}
	rate, err := wrk(ctx, addr, b.length)
	if err != nil {
		return err
	}
	s.add("throughput, 32 connections", subject, "requests/s", rate)
	for _, rate := range rates {
		latencies, err := load{addr: addr, rate: rate, connections: 16, length: b.length}.run(ctx)
		if err != nil {
			return err
		}
		for _, p := range []float64{50, 99, 99.9} {
			took := percentile(latencies, p)
			s.add(fmt.Sprintf("latency at %d/s, p%g", rate, p), subject, "ms", took.Seconds()*1e3)
		}
	}
	return nil
}

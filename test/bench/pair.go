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
// and records each request; the nginx pair does neither. Only the pair whose
// turn it is runs.
func pair(ctx context.Context, b *bench) ([]Row, error) {
	if err := b.ensure(ctx, "nginx", "wrk"); err != nil {
		return nil, err
	}
	app, stopApp, err := b.backend(ctx)
	if err != nil {
		return nil, err
	}
	defer stopApp()
	return b.rotate(ctx, []string{ours, "nginx", "direct"}, func(subject string, s *samples) error {
		switch subject {
		case ours:
			m, err := b.mesh(ctx, app)
			if err != nil {
				return err
			}
			err = pairRound(ctx, b, s, subject, m.addr, func(requests uint64) error {
				return m.settle(ctx, s, requests)
			})
			return errors.Join(m.why(ctx, err), m.stop())
		case "nginx":
			p, err := b.nginxPair(ctx, app)
			if err != nil {
				return err
			}
			defer p.stop()
			return pairRound(ctx, b, s, subject, p.addr, nil)
		}
		return pairRound(ctx, b, s, subject, app, nil)
	})
}

// pairRound measures one subject once. loaded, when not nil, runs after the
// full load, and is told how many requests were answered so far.
func pairRound(ctx context.Context, b *bench, s *samples, subject, addr string, loaded func(requests uint64) error) error {
	warm, err := wrk(ctx, addr, time.Second)
	if err != nil {
		return err
	}
	full, err := wrk(ctx, addr, b.length)
	if err != nil {
		return err
	}
	s.add("throughput, 32 connections", subject, "requests/s", full.rate)
	if loaded != nil {
		if err := loaded(warm.requests + full.requests); err != nil {
			return err
		}
	}
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

package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

var (
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`)
	wrkRequests = regexp.MustCompile(`(?m)^\s*([0-9]+) requests in `)
	wrkErrors   = regexp.MustCompile(`(?m)^\s*(Non-2xx or 3xx responses|Socket errors): (.+)$`)
)

// answered is what wrk found.
type answered struct {
	requests uint64
	// rate is requests per second.
	rate float64
}

// wrk asks addr as fast as it can over 32 connections. Any failed request is an
// error.
func wrk(ctx context.Context, addr string, length time.Duration) (answered, error) {
	seconds := max(1, int(length.Seconds()))
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c32", fmt.Sprintf("-d%ds", seconds), "http://"+addr+"/").CombinedOutput()
	if err != nil {
		return answered{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseWrk(string(out))
}

func parseWrk(out string) (answered, error) {
	if bad := wrkErrors.FindStringSubmatch(out); bad != nil {
		return answered{}, fmt.Errorf("wrk: %s: %s", bad[1], bad[2])
	}
	rate, requests := wrkRate.FindStringSubmatch(out), wrkRequests.FindStringSubmatch(out)
	if rate == nil || requests == nil {
		return answered{}, fmt.Errorf("wrk said no rate:\n%s", out)
	}
	var a answered
	var err error
	if a.rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return answered{}, err
	}
	a.requests, err = strconv.ParseUint(requests[1], 10, 64)
	return a, err
}

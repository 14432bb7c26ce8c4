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
	wrkRate   = regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`)
	wrkErrors = regexp.MustCompile(`(?m)^\s*(Non-2xx or 3xx responses|Socket errors): (.+)$`)
)

// wrk asks addr as fast as it can over 32 connections and gives requests per
// second. Any failed request is an error.
func wrk(ctx context.Context, addr string, length time.Duration) (float64, error) {
	seconds := max(1, int(length.Seconds()))
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c32", fmt.Sprintf("-d%ds", seconds), "http://"+addr+"/").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseWrk(string(out))
}

func parseWrk(out string) (float64, error) {
	if bad := wrkErrors.FindStringSubmatch(out); bad != nil {
		return 0, fmt.Errorf("wrk: %s: %s", bad[1], bad[2])
	}
	rate := wrkRate.FindStringSubmatch(out)
	if rate == nil {
		return 0, fmt.Errorf("wrk said no rate:\n%s", out)
	}
	return strconv.ParseFloat(rate[1], 64)
}

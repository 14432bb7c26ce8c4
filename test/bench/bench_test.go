package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	var s samples
	for i, v := range []float64{30, 10, 20} {
		s.add("throughput", "nginx", "requests/s", v+float64(i))
		s.add("throughput", ours, "requests/s", 2*v)
	}
	s.add("RSS", ours, "MB", 12.34)
	rows := s.rows()
	want := []Row{
		{"throughput", "writ", 40, "requests/s"},
		{"throughput", "nginx", 22, "requests/s"},
		{"RSS", "writ", 12.34, "MB"},
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Fatal(diff)
	}
	var out bytes.Buffer
	table(&out, []Report{{Name: "pair", Rows: rows}})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || !strings.HasSuffix(lines[2], "1.82×") {
		t.Errorf("table:\n%s", out.String())
	}
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	sorted := make([]int, 1000)
	for i := range sorted {
		sorted[i] = i + 1
	}
	for p, want := range map[float64]int{0: 1, 50: 500, 99: 990, 99.9: 999, 100: 1000} {
		if got := percentile(sorted, p); got != want {
			t.Errorf("p%g = %d, want %d", p, got, want)
		}
	}
	if got := percentile([]int{7}, 99); got != 7 {
		t.Errorf("of one value: %d", got)
	}
}

func TestWrkOutput(t *testing.T) {
	const good = "Running 5s test @ http://127.0.0.1:1/\n  10 requests in 5.00s, 1.0KB read\nRequests/sec:  54321.98\nTransfer/sec:      1.0MB\n"
	if got, err := parseWrk(good); err != nil || got != (answered{requests: 10, rate: 54321.98}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{
		"",
		strings.Replace(good, "Requests/sec", "  Non-2xx or 3xx responses: 7\nRequests/sec", 1),
		strings.Replace(good, "Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec", 1),
	} {
		if got, err := parseWrk(bad); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func FuzzWrkOutput(f *testing.F) {
	f.Add("  7 requests in 5.00s\nRequests/sec:  1.5\n")
	f.Add("  7 requests in 5.00s\nRequests/sec:  1.5.5\n")
	f.Fuzz(func(t *testing.T, out string) {
		if got, err := parseWrk(out); err == nil && !strings.Contains(out, "Requests/sec:") {
			t.Errorf("%q gives %v", out, got)
		}
	})
}

// A server that stalls once must be charged for every request that was due
// meanwhile, not only for those it held.
func TestLoadChargesForAStall(t *testing.T) {
	const stall = 300 * time.Millisecond
	first := make(chan struct{}, 1)
	first <- struct{}{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-first:
			time.Sleep(stall)
		default:
		}
		fmt.Fprint(w, "ok")
	}))
	defer server.Close()
	l := load{addr: server.Listener.Addr().String(), rate: 100, connections: 1, length: time.Second}
	latencies, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(latencies) != 100 {
		t.Fatalf("%d latencies", len(latencies))
	}
	// 30 requests were due within the stall; the one in its middle waited half.
	if got := percentile(latencies, 85); got < stall/3 {
		t.Errorf("p85 is %s: requests that had to wait were not counted", got)
	}
}

func TestLoadFailsWithTheServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	l := load{addr: server.Listener.Addr().String(), rate: 100, connections: 2, length: time.Second}
	if _, err := l.run(t.Context()); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a denied request: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.run(ctx); err == nil {
		t.Error("a run that was cancelled has a result")
	}
}

func TestLoadEndsWithTheContext(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	l := load{addr: silent.Addr().String(), rate: 10, connections: 2, length: time.Second}
	if _, err := l.run(ctx); err == nil {
		t.Error("a server that says nothing has a result")
	}
}

func TestUnknownSuite(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"-run", "pear"}, &out, &errs); code != 2 || !strings.Contains(errs.String(), `"pear"`) {
		t.Errorf("code %d: %s", code, errs.String())
	}
}

func TestBenchmarkOutput(t *testing.T) {
	const line = "goos: linux\nBenchmarkDecide/allow/writ-2   \t  12345\t      9876.5 ns/op\t    1234 B/op\t      56 allocs/op\nPASS\n"
	got, err := parseBenchmark(line)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]float64{"ns/op": 9876.5, "B/op": 1234, "allocs/op": 56}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "PASS\n", line + line, "BenchmarkDecide/allow/writ-2 12 x ns/op\n"} {
		if got, err := parseBenchmark(bad); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func FuzzBenchmarkOutput(f *testing.F) {
	f.Add("BenchmarkX-2 1 2 ns/op\n")
	f.Fuzz(func(t *testing.T, out string) {
		if got, err := parseBenchmark(out); err == nil && !strings.Contains(out, "Benchmark") {
			t.Errorf("%q gives %v", out, got)
		}
	})
}

func TestCPUTime(t *testing.T) {
	got, err := parseCPU([]byte("cpu  10 20 30 400 50 1 2 3 100 0\ncpu0 1 2 3 4 5\n"))
	if err != nil || got != (usage{total: 516, busy: 63}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2\n", "cpu a b c d e f g h\n", "intr 1 2 3 4 5 6 7 8\n"} {
		if got, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, got)
		}
	}
	if now, err := cpuTime(); err != nil || now.total < now.busy || now.busy <= 0 {
		t.Errorf("of this machine: %+v, %v", now, err)
	}
	before := usage{total: 100, busy: 50, own: 10}
	if got := (usage{total: 200, busy: 110, own: 40}).foreign(before); got != 0.3 {
		t.Errorf("others took %v", got)
	}
}

func FuzzCPUTime(f *testing.F) {
	f.Add([]byte("cpu  10 20 30 400 50 1 2 3 100 0\n"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if _, err := parseCPU(stat); err == nil && !bytes.HasPrefix(bytes.TrimSpace(stat), []byte("cpu")) {
			t.Errorf("%q was read", stat)
		}
	})
}

func TestJudge(t *testing.T) {
	rows := []Row{
		{"fast", ours, 30, "/s"}, {"fast", "spire", 10, "/s"},
		{"slow", ours, 2, "ms"}, {"slow", "spire", 1, "ms"},
		{"size", ours, 81, "MB"}, {"alone", ours, 5, "/s"},
	}
	judged := judge([]Budget{
		{Measure: "fast", AtLeast: 3, Peer: "spire"},
		{Measure: "fast", AtLeast: 3.1, Peer: "spire"},
		{Measure: "slow", AtMost: 2, Peer: "spire"},
		{Measure: "slow", AtMost: 1.9, Peer: "spire"},
		{Measure: "size", AtMost: 81},
		{Measure: "size", AtMost: 80},
		{Measure: "size", AtLeast: 82},
		{Measure: "alone", AtLeast: 1, Peer: "spire"},
		{Measure: "missing", AtMost: 1},
	}, rows)
	var kept []string
	for _, b := range judged {
		kept = append(kept, b.Kept)
	}
	want := []string{"yes", "no", "yes", "no", "yes", "no", "no", "not measured", "not measured"}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Error(diff)
	}
	var out bytes.Buffer
	budgetTable(&out, []Report{{Name: "spire", Budgets: judged}})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 10 || !strings.Contains(lines[1], "≥ 3× spire") || !strings.Contains(lines[6], "≤ 80 MB") {
		t.Errorf("table:\n%s", out.String())
	}
}

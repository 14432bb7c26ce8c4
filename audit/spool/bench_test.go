package spool

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

func decision() *audit.Event {
	return &audit.Event{
		Kind: auditv1.Kind_KIND_DECISION, Time: time.Unix(1700000000, 0), Outcome: auditv1.Outcome_OUTCOME_ALLOW, Mode: policy.Enforce, Enforced: true,
		Input: &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest,
			Source:      policy.Source{ID: "spiffe://example.org/svc/a", TrustDomain: "example.org", Path: "/svc/a", Authn: policy.AuthnMTLS, Serial: make([]byte, 16)},
			Destination: policy.Destination{Service: "web", ID: web.String(), Port: 8443},
			Request:     policy.Request{Protocol: policy.HTTP, Method: "GET", Host: "web.local", Path: "/v1/orders/12345"},
			Connection:  policy.Connection{PeerIP: "127.0.0.1", PeerPort: 50123, TLSVersion: "1.3", SNI: "web", ALPN: "h2", KeyExchange: "X25519MLKEM768"},
			TokenStatus: policy.TokenAbsent,
		},
		Decision: &policy.Decision{
			Verdict: policy.Allow, Tier: policy.ServiceAllow, Rules: []policy.Rule{{ID: "web-reads", File: "services/web.rego", Line: 12}},
			Revision: policy.Revision{Epoch: 1, Number: 42, Digest: [32]byte{1}},
		},
		Reads: &policy.Reads{}, Latency: time.Microsecond,
	}
}

func TestRecordAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools at random")
	}
	s := open(t, config(t.TempDir()))
	ev := decision()
	if n := testing.AllocsPerRun(500, func() {
		if _, err := s.Record(ev); err != nil {
			t.Fatal(err)
		}
	}); n >= 1 {
		t.Errorf("%v allocations, want less than one in many", n)
	}
}

// BenchmarkRecord is what an event costs on the request path; cpu-ns/op is the
// part that the recording thread computed, whatever else the machine does. The
// spool does not fill: it is replaced, outside the measure, when it is nearly
// full.
func BenchmarkRecord(b *testing.B) {
	cfg := config(b.TempDir())
	cfg.MaxBytes = 256 << 20
	s := open(b, cfg)
	ev := decision()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var spent time.Duration
	from := threadTime(b)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%400_000 == 399_999 {
			b.StopTimer()
			spent += threadTime(b) - from
			closeSpool(b, s)
			cfg.Dir = b.TempDir()
			s = open(b, cfg)
			from = threadTime(b)
			b.StartTimer()
		}
		if _, err := s.Record(ev); err != nil {
			b.Fatal(err)
		}
	}
	spent += threadTime(b) - from
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// threadTime is the processor time of this thread.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/mesh"
)

// upResult is the document of up --once --output json.
type upResult struct {
	// ReadyMS is the time from the start of this process to the first
	// authorized response, milliseconds; to all programs ready where the mesh
	// file drives no request that is allowed.
	ReadyMS  int64           `json:"ready_ms"`
	Services []serviceResult `json:"services"`
	Requests []requestResult `json:"requests"`
	Audit    auditResult     `json:"audit"`
	OK       bool            `json:"ok"`
	// Error is why OK is false. The rest is what was known by then.
	Error string `json:"error,omitempty"`
}

type serviceResult struct {
	Name     string `json:"name"`
	SPIFFEID string `json:"spiffe_id"`
}

type requestResult struct {
	Caller   string `json:"caller"`
	Target   string `json:"target"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Expected string `json:"expected"`
	// Verdict is the one on record; error where there is none.
	Verdict string `json:"verdict"`
	// Rule is the ids of the rules that decided, or the tier where none did.
	Rule string `json:"rule"`
	// Status is HTTP's, or gRPC's where the target speaks gRPC; -1 without a
	// response.
	Status    int   `json:"status"`
	LatencyUS int64 `json:"latency_us"`

	latency  time.Duration
	observed bool
	// reason is the record's, for a request refused before a decision.
	reason  string
	problem error
}

// unanswered is the result of a request before anything is known of it.
func unanswered(r mesh.Request) requestResult {
	return requestResult{
		Caller: r.Caller, Target: r.Target, Method: r.Method, Path: r.Path, Expected: r.Expected,
		Verdict: mesh.Erroneous, Status: -1,
	}
}

type auditResult struct {
	Events   uint64 `json:"events"`
	Verified bool   `json:"verified"`
}

// failure is what the exit code comes from.
func (r *upResult) failure() error {
	if r.OK {
		return nil
	}
	wrong := 0
	for _, q := range r.Requests {
		if q.Verdict != q.Expected {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d verdicts were not as expected", wrong, len(r.Requests))
	}
	return errors.New("the audit record does not verify")
}

// concluded is the document of a run that ended with err, and the error that
// the exit code comes from: there is a document in any case.
func concluded(result *upResult, err error) (*upResult, error) {
	if result == nil {
		result = &upResult{Services: []serviceResult{}, Requests: []requestResult{}}
		if err == nil {
			err = errors.New("stopped before there was a result")
		}
	}
	if err == nil {
		err = result.failure()
	}
	if err != nil {
		result.OK, result.Error = false, err.Error()
	}
	return result, err
}

// drive sends the requests of the mesh file, one after the other, and shows
// each as soon as it is on record. The next one does not wait for that.
func (u *upRun) drive(ctx context.Context) *upResult {
	result := &upResult{ReadyMS: time.Since(u.opts.started).Milliseconds(), Requests: []requestResult{}}
	for _, s := range u.mesh.Services {
		result.Services = append(result.Services, serviceResult{s.Name, s.SPIFFEID})
	}
	if len(u.mesh.Requests) == 0 {
		return result
	}
	u.view.printf("")
	type sent struct {
		request mesh.Request
		outcome outcome
	}
	outcomes := make(chan sent, len(u.mesh.Requests))
	go func() {
		defer close(outcomes)
		for _, r := range u.mesh.Requests {
			if ctx.Err() != nil {
				return
			}
			outcomes <- sent{r, u.send(ctx, r)}
		}
	}()
	first := true
	for s := range outcomes {
		r := u.judge(ctx, s.request, s.outcome)
		if first && r.Verdict == mesh.Allowed {
			first = false
			result.ReadyMS = s.outcome.at.Sub(u.opts.started).Milliseconds()
		}
		u.view.request(u.mesh, r)
		result.Requests = append(result.Requests, r)
	}
	return result
}

// send drives one request: through the caller's own sidecar, or, for a caller
// without an SVID, straight at the target's.
func (u *upRun) send(ctx context.Context, r mesh.Request) outcome {
	target := u.mesh.Service(r.Target)
	c := &call{Request: r}
	if r.Caller == mesh.NoCaller {
		c.addr = u.ports.address(useInbound(r.Target))
		var err error
		if c.tls, err = u.withoutSVID(target); err != nil {
			return outcome{status: -1, err: err}
		}
	} else {
		c.addr = loopback(u.mesh.Service(r.Caller).Upstream(r.Target).Port)
	}
	return c.do(ctx, target.Protocol)
}

// withoutSVID checks the target's identity, as everybody does, and shows none.
func (u *upRun) withoutSVID(target *mesh.Service) (*tls.Config, error) {
	roots, err := x509bundle.Load(u.mesh.Domain(), u.dir.path("public", "bundle.pem"))
	if err != nil {
		return nil, err
	}
	return tlsconfig.TLSClientConfig(roots, tlsconfig.AuthorizeID(target.ID())), nil
}

// judge takes the verdict from the record.
func (u *upRun) judge(ctx context.Context, r mesh.Request, o outcome) requestResult {
	result := unanswered(r)
	result.Status, result.LatencyUS, result.latency = o.status, o.latency.Microseconds(), o.latency
	event, err := o.onRecord(ctx, u.tail, r.Target)
	if err != nil {
		result.problem = err
		return result
	}
	result.Verdict, result.Rule = event.verdict(), event.rule()
	if result.Verdict == mesh.Refused {
		result.reason = event.event.GetReason()
	}
	result.observed = event.event.GetMode() == auditv1.Mode_MODE_OBSERVE
	return result
}

// conclude ends a run with once: the sidecars stop and hand over the rest of
// their record, which is then fetched and verified as anybody could.
func (u *upRun) conclude(ctx context.Context, result *upResult) (*upResult, error) {
	stopCtx, cancel := context.WithTimeout(ctx, sidecarStop)
	defer cancel()
	u.stopSidecars(stopCtx)
	ctx, cancel = context.WithTimeout(ctx, driveTimeout)
	defer cancel()
	client := auditv1.NewAdminClient(u.conn)
	if err := settled(ctx, client); err != nil {
		return result, err
	}
	events, err := u.verifyRecord(ctx, client)
	if err != nil {
		u.view.warn("audit: %v", err)
	}
	result.Audit = auditResult{Events: events, Verified: err == nil}
	result.OK = result.Audit.Verified
	right := 0
	for _, r := range result.Requests {
		if r.Verdict == r.Expected {
			right++
		}
	}
	result.OK = result.OK && right == len(result.Requests)
	verified := "not verified"
	if result.Audit.Verified {
		verified = "verified"
	}
	u.view.printf("\n%s %d of %d requests as expected; record of %d events %s; first authorized response after %d ms",
		u.view.tick(result.OK), right, len(result.Requests), events, verified, result.ReadyMS)
	return result, nil
}

// processStart is when this process began, of which the kernel keeps account
// to a hundredth of a second (proc_pid_stat(5), starttime).
func processStart() time.Time {
	now := time.Now()
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return now
	}
	// The name, in parentheses, may hold anything; starttime is the 20th field
	// after it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var up unix.Timespec
	if len(fields) < 20 || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return now
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return now
	}
	const tick = time.Second / 100 // USER_HZ, on every architecture of Linux
	return now.Add(-max(time.Duration(up.Nano())-time.Duration(ticks)*tick, 0))
}

// lookPath finds a program: by name in PATH, by path from the service's own
// directory.
func lookPath(name, dir string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) && !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/internal/supervise"
)

// view tells a person what happens, a line at a time: the same lines on a
// terminal, in colour, and elsewhere, plain.
type view struct {
	mu      sync.Mutex
	w       io.Writer
	colours bool
	started map[string]bool
	// widths of columns that depend on the mesh.
	nameWidth, idWidth, routeWidth, requestWidth int
}

// Styles of ANSI terminals (ECMA-48, SGR).
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func newView(w io.Writer) *view {
	v := &view{w: w, started: map[string]bool{}}
	if f, ok := w.(*os.File); ok {
		v.colours = term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return v
}

func (v *view) style(code, text string) string {
	if !v.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (v *view) printf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fmt.Fprintf(v.w, format+"\n", args...)
}

func (v *view) warn(format string, args ...any) {
	v.printf("%s", v.style(yellow, "! "+fmt.Sprintf(format, args...)))
}

// pad fills text to a width in characters. The text is measured before it is
// styled.
func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(width-utf8.RuneCountInString(text), 0))
}

func (v *view) begin(m *mesh.Mesh, dir string) {
	v.nameWidth = len("writ-agent")
	for _, s := range m.Services {
		v.nameWidth = max(v.nameWidth, len(s.Name))
		v.idWidth = max(v.idWidth, len(s.SPIFFEID))
	}
	for _, r := range m.Requests {
		v.routeWidth = max(v.routeWidth, len(r.Caller)+len(r.Target)+3)
		v.requestWidth = max(v.requestWidth, min(len(requestText(m, r.Target, r.Method, r.Path)), 48))
	}
	v.printf("%s %s in %s\n", v.style(bold, "writ"), m.TrustDomain, display(dir))
	for i := range m.Services {
		if s := &m.Services[i]; s.Mode != s.ModeAt(time.Now()) {
			v.warn("observing %s ended on %s: it is enforced", s.Name, s.ObserveUntil.Format(time.DateOnly))
		}
	}
}

// change tells of a control plane's program, or of an application.
func (v *view) change(c supervise.Change) {
	switch c.State {
	case supervise.Restarting:
		v.warn("%s died (%v): starting it again in %s", c.Name, c.Err, c.Delay.Round(time.Millisecond))
	case supervise.Ready:
		if v.first(c.Name) {
			return
		}
		v.printf("%s", v.style(green, fmt.Sprintf("+ %s is back after %s", c.Name, c.Took.Round(time.Millisecond))))
	}
}

// first reports whether it is asked about name for the first time.
func (v *view) first(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.started[name]
	v.started[name] = true
	return !was
}

func (v *view) ready(name, what string) {
	v.printf("  %s  %s", pad(name, v.nameWidth), what)
}

func (v *view) service(s *mesh.Service) {
	what := "calls others only"
	if s.Listens() {
		mode := s.ModeAt(time.Now())
		what = s.Protocol + ", " + mode
		if mode == mesh.Observe {
			what += " until " + s.ObserveUntil.Format(time.DateOnly)
		}
	}
	v.ready(s.Name, v.style(bold, pad(s.SPIFFEID, v.idWidth))+"  "+v.style(dim, what))
}

func (v *view) tick(ok bool) string {
	if ok {
		return v.style(green, "✓")
	}
	return v.style(red, "✗")
}

func (v *view) verdict(verdict string) string {
	colour := red
	if verdict == mesh.Allowed {
		colour = green
	}
	return v.style(colour, pad(verdict, len(mesh.Refused)))
}

// request shows a driven request.
func (v *view) request(m *mesh.Mesh, r requestResult) {
	note := ""
	switch {
	case r.Verdict != r.Expected:
		note = v.style(red, "  expected "+r.Expected)
		if r.problem != nil {
			note += fmt.Sprintf(": %v", r.problem)
		}
	case r.Verdict == mesh.Denied && r.observed:
		note = v.style(yellow, "  observed, so it passed")
	case r.reason != "":
		note = v.style(dim, "  "+plainText(r.reason))
	case r.observed:
		note = v.style(yellow, "  observed")
	}
	v.printf("  %s %s  %s  %s  %s  %s  %s%s", v.tick(r.Verdict == r.Expected), v.verdict(r.Verdict),
		pad(r.Caller+" → "+r.Target, v.routeWidth), pad(requestText(m, r.Target, r.Method, r.Path), v.requestWidth),
		pad(or(r.Rule, "-"), 28), pad(statusText(m.Service(r.Target).Protocol, r.Status), 8),
		v.style(dim, latencyText(r.latency)), note)
}

func requestText(m *mesh.Mesh, target, method, path string) string {
	if m.Service(target).Protocol == mesh.GRPC {
		return path
	}
	return method + " " + path
}

// statusText is an HTTP status, or the name of a gRPC status.
func statusText(protocol string, status int) string {
	switch {
	case status < 0:
		return "-"
	case protocol == mesh.GRPC:
		if status == int(codes.PermissionDenied) {
			return "DENIED"
		}
		return strings.ToUpper(codes.Code(status).String())
	}
	return fmt.Sprint(status)
}

func latencyText(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// live shows a request that somebody else made.
func (v *view) live(r *recorded) {
	e := r.event
	source := short(e.GetSource().GetId())
	if source == "" {
		source = "none (" + net.JoinHostPort(e.GetConnection().GetPeerIp(), fmt.Sprint(e.GetConnection().GetPeerPort())) + ")"
	}
	what := e.GetRequest().GetMethod() + " " + e.GetRequest().GetPath()
	if e.GetRequest().GetProtocol() == mesh.GRPC {
		what = e.GetRequest().GetPath()
	}
	if e.GetKind() == auditv1.Kind_KIND_CONNECTION {
		what = "connection: " + e.GetReason()
	}
	note := ""
	if !e.GetEnforced() && r.verdict() != mesh.Allowed {
		note = v.style(yellow, "  observed, so it passed")
	}
	v.printf("  %s %s  %s  %s  %s  %s  %s", v.style(dim, time.Unix(0, e.GetTime()).Format(time.TimeOnly)), v.verdict(r.verdict()),
		pad(source+" → "+e.GetDestination().GetService(), v.routeWidth), pad(plainText(what), v.requestWidth), pad(or(r.rule(), "-"), 28),
		v.style(dim, "decided in "+latencyText(time.Duration(e.GetLatency()))), v.style(dim, r.id)+note)
}

// short is the last segment of a SPIFFE ID, as the mesh file names services.
func short(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// plainText keeps what others sent from reaching the terminal as a command to
// it, or from turning its text around.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return utf8.RuneError
		}
		return r
	}, s)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// byHand prints lines to paste: requests of the mesh file, as their callers.
func (v *view) byHand(m *mesh.Mesh, policyctl, dataDir string) {
	v.printf("\n%s", v.style(bold, "by hand"))
	shown := map[string]bool{}
	for _, r := range m.Requests {
		caller, target := m.Service(r.Caller), m.Service(r.Target)
		if caller == nil || target.Protocol != mesh.HTTP || shown[r.Expected+r.Target] || len(shown) == 4 {
			continue
		}
		shown[r.Expected+r.Target] = true
		v.printf("  %s  %s", curl(r, caller.Upstream(r.Target).Port), v.style(dim, "# as "+r.Caller+": "+r.Expected))
	}
	if len(shown) == 0 {
		for _, s := range m.Services {
			for _, u := range s.Upstreams {
				v.printf("  %s → %s  %s", s.Name, u.Service, loopback(u.Port))
			}
		}
	}
	v.printf("  %s status --data-dir %s", shellWord(policyctl), shellWord(display(dataDir)))
	v.printf("\nCtrl-C stops everything.\n")
}

func curl(r mesh.Request, port int) string {
	line := "curl -i"
	if r.Method != "GET" {
		line += " -X " + r.Method
	}
	for name, value := range r.Headers {
		line += " -H " + shellWord(name+": "+value)
	}
	// curl would tidy the path; what is decided is what was sent.
	if strings.Contains(r.Path, "/.") || strings.Contains(strings.ToLower(r.Path), "%2e") {
		line += " --path-as-is"
	}
	return line + " " + shellWord("http://"+loopback(port)+r.Path)
}

// shellWord quotes text for a POSIX shell where it needs that.
func shellWord(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:%+,@", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

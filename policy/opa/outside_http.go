package opa

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-dev/writ/policy/bundle"
)

const (
	// Bytes of the headers of an answer.
	maxAnswerHeader = 64 << 10
	// Connections of a snapshot to one host. Who finds none free waits, within
	// the time of the call.
	maxHostConns = 64
	maxIdleConns = 8
	// Idle connections of a snapshot that is no longer in force end by this.
	idleConnTime = 30 * time.Second
)

// sendOptions are what a request may say. It is a list of what is known to be
// harmless, so that nothing slips in with a newer OPA.
var sendOptions = []string{
	"method", "url", "headers", "body", "raw_body", "timeout", "enable_redirect", "force_json_decode",
	"raise_error", "tls_ca_cert", "tls_use_system_certs",
}

// refusedOption says why http.send may not be told a thing, or nothing.
func refusedOption(name string, value ast.Value) string {
	switch {
	case slices.Contains(sendOptions, name):
	case strings.HasSuffix(name, "_file"), strings.HasSuffix(name, "_env_variable"):
		return "a policy reads no files and no environment"
	case strings.HasPrefix(name, "tls_client_"):
		return privateKeys
	case strings.Contains(name, "cache") || name == "caching_mode":
		return "an answer is kept for one decision only"
	case strings.Contains(name, "yaml"):
		return "answers in YAML are not read"
	case name == "tls_insecure_skip_verify", name == "tls_server_name":
		return "the host is whom it is listed as"
	default:
		return "there is " + strings.Join(sendOptions, ", ")
	}
	switch text, isText := value.(ast.String); {
	case name == "raise_error" && value.Compare(ast.Boolean(false)) == 0:
		return "a failure is an error in every decision"
	case name == "method" && isText && !slices.Contains([]string{"GET", "HEAD", "POST"}, strings.ToUpper(string(text))):
		return "want GET, HEAD or POST"
	case name == "headers":
		if headers, ok := value.(ast.Object); ok && slices.ContainsFunc(headers.Keys(), func(k *ast.Term) bool {
			header, _ := k.Value.(ast.String)
			return strings.EqualFold(string(header), "host")
		}) {
			return "host is that of the url"
		}
	}
	return ""
}

// refusedURL says why a request may not go to an URL, or nothing. The error
// does not repeat its query, in which there may be secrets.
func refusedURL(bounds *bundle.OutsideHTTP, u *url.URL) error {
	switch {
	case u.User != nil:
		return errors.New("an url with a user or password is refused: send a header")
	case !slices.ContainsFunc(bounds.Origins, func(o bundle.Origin) bool { return o.Admits(u) }):
		return fmt.Errorf("%s://%s is not among the hosts of data.writ.outside", u.Scheme, u.Host)
	}
	return nil
}

// send has OPA's own http.send make the request, within the bounds.
func (a *asking) send(bctx topdown.BuiltinContext, send topdown.BuiltinFunc, operands []*ast.Term, iter func(*ast.Term) error) error {
	request, err := a.request(operands[0])
	if err != nil {
		return err
	}
	bctx.InterQueryBuiltinCache = nil
	bctx.Capabilities = nil // Its hosts are not ours; the guard looks at each request.
	bctx.RoundTripper = func(theirs *http.Transport) http.RoundTripper {
		next := a.transport
		if theirs != nil && theirs.TLSClientConfig != nil { // It has authorities of its own.
			next = a.newTransport()
			next.TLSClientConfig = &tls.Config{RootCAs: theirs.TLSClientConfig.RootCAs}
			next.DisableKeepAlives = true
		}
		return &guard{asking: a, next: next}
	}
	var inner error
	err = send(bctx, append([]*ast.Term{request}, operands[1:]...), func(answer *ast.Term) error {
		inner = iter(answer)
		return inner
	})
	if err == nil || inner != nil {
		return err // What follows in the rule ended so.
	}
	return withoutQueries(err)
}

// request is the request without what may not be said, and with a timeout.
func (a *asking) request(operand *ast.Term) (*ast.Term, error) {
	asked, ok := operand.Value.(ast.Object)
	if !ok {
		return nil, fmt.Errorf("want an object, got %s", ast.ValueName(operand.Value))
	}
	bounds, request := a.bounds.HTTP, ast.NewObject()
	timeout := bounds.Timeout
	err := asked.Iter(func(k, v *ast.Term) error {
		name, _ := k.Value.(ast.String)
		if why := refusedOption(string(name), v.Value); why != "" {
			return fmt.Errorf("%v: %s", k, why)
		}
		switch name {
		case "timeout":
			d, err := sendTimeout(v.Value)
			if err != nil {
				return err
			}
			timeout = min(timeout, d)
			return nil
		case "url":
			text, _ := v.Value.(ast.String)
			u, err := url.Parse(string(text))
			if err != nil {
				return errors.New("the url cannot be read")
			}
			if err := refusedURL(bounds, u); err != nil {
				return err
			}
		}
		request.Insert(k, v)
		return nil
	})
	if err != nil {
		return nil, err
	}
	request.Insert(ast.StringTerm("timeout"), ast.StringTerm(timeout.String()))
	return ast.NewTerm(request), nil
}

// sendTimeout is nanoseconds, or a text such as "100ms".
func sendTimeout(v ast.Value) (time.Duration, error) {
	d := time.Duration(0)
	switch v := v.(type) {
	case ast.Number:
		n, _ := v.Int64()
		d = time.Duration(n)
	case ast.String:
		d, _ = time.ParseDuration(string(v))
	}
	if d <= 0 { // OPA takes 0 for no limit.
		return 0, fmt.Errorf(`timeout: want nanoseconds or a text such as "100ms", got %v`, v)
	}
	return d, nil
}

// guard looks at each request, redirects and repetitions included.
type guard struct {
	*asking
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.refuse(req); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if strings.Contains(resp.Header.Get("Content-Type"), "yaml") {
		_ = resp.Body.Close()
		return nil, errors.New("answers in YAML are not read")
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, ctx: req.Context(), max: g.bounds.HTTP.MaxBytes, left: g.bounds.HTTP.MaxBytes}
	return resp, nil
}

func (g *guard) refuse(req *http.Request) error {
	bounds := g.bounds.HTTP
	if err := refusedURL(bounds, req.URL); err != nil {
		return err
	}
	if from := req.Response; from != nil && from.Request.URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("a redirect leaves https")
	}
	if g.requests++; g.requests > bounds.MaxCalls {
		return fmt.Errorf("more than %d requests in one decision", bounds.MaxCalls)
	}
	return nil
}

// boundedBody ends in an error where it is too long: half an answer is none.
type boundedBody struct {
	io.ReadCloser
	ctx       context.Context // of the request, whose deadline is its timeout
	max, left int64
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	// One more than there may be, to see that it is there.
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the answer is larger than %d bytes", b.max)
	}
	if err != nil && err != io.EOF && b.late() {
		err = errors.New("request timed out")
	}
	return n, err
}

// late reports whether the request has run out of time. Its end comes to a read
// in more than one way, and as one of several errors.
func (b *boundedBody) late() bool {
	end, ok := b.ctx.Deadline()
	return ok && !time.Now().Before(end)
}

// newTransport dials whom the policy lists, itself: a proxy would dial anybody.
func (r *reach) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            r.dial,
		ForceAttemptHTTP2:      true,
		MaxConnsPerHost:        maxHostConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConnTime,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

func (r *reach) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Resolver: r.resolver}
	if _, err := netip.ParseAddr(host); err != nil {
		// It is a name. Control sees the address that it is dialled at, so that
		// there is no other answer of a name server in between.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			if why := unlisted(to.Addr()); why != "" {
				return fmt.Errorf("%s is at %s, which is %s: only a host that is listed by this address may be there", host, to.Addr(), why)
			}
			return nil
		}
	}
	return dialer.DialContext(ctx, network, address)
}

var queryOfURL = regexp.MustCompile(`(https?://[^\s"?#]*)[?#][^\s"]*`)

// withoutQueries takes the queries of URLs out of an error, which goes on
// record.
func withoutQueries(err error) error {
	var e *topdown.Error
	if !errors.As(err, &e) || topdown.IsCancel(err) {
		return err
	}
	return &topdown.Error{Code: e.Code, Location: e.Location, Message: queryOfURL.ReplaceAllString(e.Message, "$1?…")}
}

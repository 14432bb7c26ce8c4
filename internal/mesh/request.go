package mesh

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/writ-dev/writ/internal/nearmiss"
)

// own are headers that whoever drives a request sets.
var own = []string{"connection", "content-length", "host", "te", "transfer-encoding", "upgrade"}

func (c *checker) request(i int) {
	r := &c.Requests[i]
	key := fmt.Sprintf("requests[%d]", i)
	if r.Expected == "" {
		c.fail(key+".expected", "missing: say what the verdict must be (allow, deny, refused or error)")
	}
	target := c.target(key, r)
	c.caller(key, r, target)
	for name, value := range r.Headers {
		hkey := key + ".headers." + name
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			c.fail(hkey, "%q cannot be a header name", name)
		case slices.Contains(own, strings.ToLower(name)):
			c.fail(hkey, "%q cannot be chosen", name)
		case !httpguts.ValidHeaderFieldValue(value):
			c.fail(hkey, "%q cannot be a header value", value)
		}
	}
	if target == nil {
		return
	}
	if target.Protocol == GRPC {
		c.call(key, r)
		return
	}
	r.Method = or(r.Method, http.MethodGet)
	if !httpguts.ValidHeaderFieldName(r.Method) {
		c.fail(key+".method", "%q cannot be a method", r.Method)
	}
	// The path goes out byte for byte, so that malformed ones can be driven
	// too, as long as they stay inside the request line.
	if !strings.HasPrefix(r.Path, "/") || strings.ContainsFunc(r.Path, func(ch rune) bool { return ch <= ' ' || ch == 0x7f || ch == '#' }) {
		c.fail(key+".path", "%q: want a path that begins with / and holds no space, control character or #", r.Path)
	}
}

// call checks a request to a gRPC service.
func (c *checker) call(key string, r *Request) {
	if r.Method != "" && r.Method != http.MethodPost {
		c.fail(key+".method", "a gRPC call has none: its method is in the path")
	}
	r.Method = http.MethodPost
	if !grpcPath.MatchString(r.Path) {
		c.fail(key+".path", "%q: %s speaks gRPC, want /package.Service/Method", r.Path, r.Target)
	}
}

func (c *checker) target(key string, r *Request) *Service {
	if r.Target == "" {
		c.fail(key+".target", "missing: name the service that is called")
		return nil
	}
	return c.callee(key+".target", r.Target)
}

func (c *checker) caller(key string, r *Request, target *Service) {
	switch caller := c.Service(r.Caller); {
	case r.Caller == "":
		c.fail(key+".caller", "missing: name the service that calls, or none for a caller without an SVID")
	case r.Caller == NoCaller:
	case caller == nil:
		c.fail(key+".caller", "no service is called %q%s", r.Caller, nearmiss.Hint(r.Caller, append(slices.Clone(c.names), NoCaller)))
	case target != nil && caller.Upstream(target.Name) == nil:
		c.fail(key+".caller", "%q cannot call %q: add it to the upstreams of %q", r.Caller, target.Name, r.Caller)
	}
}

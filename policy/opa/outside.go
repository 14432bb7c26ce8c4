package opa

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/writ-dev/writ/policy/bundle"
)

// Outside is the way out of an evaluation, for http.send, net.lookup_ip_addr
// and opa.runtime. How far it goes is said by the policy's data.writ.outside.
// The zero value shows no environment.
type Outside struct {
	// Env looks up an environment variable, as os.LookupEnv does.
	Env func(name string) (string, bool)
	// Resolver looks up hosts; net.DefaultResolver when nil.
	Resolver *net.Resolver
}

// reach is how far the decisions of one snapshot can look: what there is a way
// for and the data admits.
type reach struct {
	bounds bundle.Outside
	// open is false where there is no way out at all. What follows is not set
	// then.
	open      bool
	resolver  *net.Resolver
	transport *http.Transport
	// runtime is what opa.runtime shows.
	runtime *ast.Term
}

// reach is nil for a policy that looks at its input only.
func (o *Outside) reach(bounds bundle.Outside) *reach {
	if len(bounds.Builtins()) == 0 {
		return nil
	}
	r := &reach{bounds: bounds, open: o != nil}
	if o == nil {
		return r
	}
	if r.resolver = o.Resolver; r.resolver == nil {
		r.resolver = net.DefaultResolver
	}
	if bounds.HTTP != nil {
		r.transport = r.newTransport()
	}
	if bounds.Runtime != nil {
		r.runtime = o.runtime(bounds.Runtime.Env)
	}
	return r
}

// runtime is what opa.runtime gives under OPA, but for the configuration, and
// of the environment what is named.
func (o *Outside) runtime(names []string) *ast.Term {
	env := ast.NewObject()
	for _, name := range names {
		if o.Env == nil {
			break
		}
		if value, ok := o.Env(name); ok {
			env.Insert(ast.StringTerm(name), ast.StringTerm(value))
		}
	}
	return ast.ObjectTerm(
		ast.Item(ast.StringTerm("env"), ast.NewTerm(env)),
		ast.Item(ast.StringTerm("version"), ast.StringTerm(version.Version)),
	)
}

// asking is what one decision asked. It belongs to the goroutine of the
// decision.
type asking struct {
	*reach
	requests, lookups int
	// unasked is the builtin that was called and had no way out.
	unasked string
}

type askingKey struct{}

// begin gives the context of one decision, in which builtins find what they may
// reach and until when.
func (r *reach) begin(ctx context.Context, timeout time.Duration) (context.Context, *asking, context.CancelFunc) {
	a := &asking{reach: r}
	ctx, end := context.WithTimeout(context.WithValue(ctx, askingKey{}, a), timeout)
	return ctx, a, end
}

var errNoWayOut = errors.New("it looks outside of the input, which only a sidecar with policy.allow_outside does; in a test, `with … as` stands in for it")

// wayOut finds what a builtin may reach. Where nothing was begun (a test, a
// query, what the compiler tries) there is no way out.
func wayOut(ctx context.Context, builtin string) (*asking, error) {
	a, _ := ctx.Value(askingKey{}).(*asking)
	switch {
	case a == nil:
		return nil, errNoWayOut
	case !a.open:
		a.unasked = builtin
		return nil, errNoWayOut
	case !slices.Contains(a.bounds.Builtins(), builtin):
		return nil, errors.New("data.writ.outside does not admit it")
	}
	return a, nil
}

// boundOutside replaces the builtins that look outside.
func boundOutside() {
	send := topdown.GetBuiltin(bundle.HTTPSend)
	topdown.RegisterBuiltinFunc(bundle.HTTPSend, bounded(
		func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			a, err := wayOut(bctx.Context, bundle.HTTPSend)
			if err != nil {
				return err
			}
			return a.send(bctx, send, operands, iter)
		}, 1, boundWritten))
	topdown.RegisterBuiltinFunc(bundle.LookupIP,
		func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			a, err := wayOut(bctx.Context, bundle.LookupIP)
			if err != nil {
				return err
			}
			addresses, err := a.lookup(bctx, operands[0])
			if err != nil {
				return err
			}
			return iter(addresses)
		})
	topdown.RegisterBuiltinFunc(bundle.OPARuntime,
		func(bctx topdown.BuiltinContext, _ []*ast.Term, iter func(*ast.Term) error) error {
			a, err := wayOut(bctx.Context, bundle.OPARuntime)
			if err != nil {
				return err
			}
			return iter(a.runtime)
		})
}

type lookedUp string

// lookup gives the addresses of a host as a set of texts; the same within one
// decision.
func (a *asking) lookup(bctx topdown.BuiltinContext, operand *ast.Term) (*ast.Term, error) {
	text, ok := operand.Value.(ast.String)
	if !ok {
		return nil, fmt.Errorf("want a text, got %s", ast.ValueName(operand.Value))
	}
	host, bounds := string(text), a.bounds.Lookup
	if !slices.ContainsFunc(bounds.Hosts, func(p bundle.HostPattern) bool { return p.Admits(host) }) {
		return nil, fmt.Errorf("%q is not among the hosts of data.writ.outside", host)
	}
	if known, ok := bctx.Cache.Get(lookedUp(host)); ok {
		return known.(*ast.Term), nil
	}
	if a.lookups++; a.lookups > bounds.MaxCalls {
		return nil, fmt.Errorf("more than %d in one decision", bounds.MaxCalls)
	}
	ctx, cancel := context.WithTimeout(bctx.Context, bounds.Timeout)
	defer cancel()
	found, err := a.resolver.LookupNetIP(ctx, "ip", host)
	switch {
	case bctx.Context.Err() != nil:
		return nil, cancelled(bundle.LookupIP, bctx)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("no answer for %s within %v", host, bounds.Timeout)
	case err != nil:
		return nil, err
	}
	addresses := ast.NewSet()
	for _, addr := range found {
		addresses.Add(ast.StringTerm(addr.Unmap().String()))
	}
	term := ast.NewTerm(addresses)
	bctx.Cache.Put(lookedUp(host), term)
	return term, nil
}

// cancelled ends the evaluation: the time of the decision is over, or whoever
// wanted it left.
func cancelled(builtin string, bctx topdown.BuiltinContext) error {
	return topdown.Halt{Err: &topdown.Error{Code: topdown.CancelErr, Message: builtin + ": " + bctx.Context.Err().Error(), Location: bctx.Location}}
}

// Addresses at which clouds tell machines their secrets, beside link-local
// ones.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle
	netip.MustParsePrefix("fd00:ec2::254/128"),  // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google
	netip.MustParsePrefix("fd00:42::42/128"),    // Scaleway
	netip.MustParsePrefix("0.0.0.0/8"),          // the machine itself, on some systems
	netip.MustParsePrefix("255.255.255.255/32"), // everybody
	netip.MustParsePrefix("64:ff9b:1::/48"),     // translated, RFC 8215
	netip.MustParsePrefix("2002::/16"),          // tunnelled, RFC 3056
	netip.MustParsePrefix("2001::/32"),          // tunnelled, RFC 4380
	netip.MustParsePrefix("::/96"),              // unspecified, loopback, IPv4-compatible
	netip.MustParsePrefix("fec0::/10"),          // site-local, RFC 3879
}

var translated = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052

// unlisted says why a host's name may not lead to an address, or nothing: a
// name server could otherwise make any listed name one of the machine itself.
func unlisted(addr netip.Addr) string {
	addr = addr.Unmap()
	if translated.Contains(addr) {
		bytes := addr.As16()
		addr = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	switch {
	case addr.IsLoopback(), addr.IsUnspecified():
		return "the machine itself"
	case addr.IsLinkLocalUnicast():
		return "link-local"
	case addr.IsMulticast():
		return "multicast"
	case slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return "reserved, or one where clouds tell secrets"
	}
	return ""
}

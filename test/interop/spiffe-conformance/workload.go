package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// prompt is the time within which a first message comes "without delay".
const prompt = 5 * time.Second

// dial connects as SPIFFE_ENDPOINT_SOCKET says.
func dial(address string) (*grpc.ClientConn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	network, target := u.Scheme, u.Path
	switch {
	case u.Scheme == "unix" && strings.HasPrefix(u.Path, "/"):
	case u.Scheme == "tcp" && u.Path == "" && net.ParseIP(u.Hostname()) != nil && u.Port() != "":
		target = u.Host
	default:
		return nil, fmt.Errorf("socket %q: want unix:///path or tcp://IP:port (Workload Endpoint 4)", address)
	}
	return grpc.NewClient("passthrough:///endpoint", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, target)
		}))
}

// withHeader is a context with the security header.
func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// workload is what the Workload API gave, for the checks that compare.
type workload struct {
	Config
	*Report
	api    workloadpb.SpiffeWorkloadAPIClient
	ids    []string
	bundle []byte // of the default identity
	domain string // its trust domain's SPIFFE ID
}

func checkWorkloadAPI(ctx context.Context, c Config, r *Report) error {
	conn, err := dial(c.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	w := &workload{Config: c, Report: r, api: workloadpb.NewSpiffeWorkloadAPIClient(conn)}
	if err := w.headers(ctx); err != nil {
		return err
	}
	// The connection above was made without TLS, so nothing was asked of us.
	r.Say("endpoint-no-tls-client", true, "")
	w.denied(ctx)
	if w.x509(ctx) {
		w.x509Bundles(ctx)
	}
	if keys := w.jwtBundles(ctx); keys != nil {
		w.jwt(ctx, keys)
	}
	return nil
}

// firstX509 is the answer to one FetchX509SVID.
func (w *workload) firstX509(ctx context.Context) (*workloadpb.X509SVIDResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	stream, err := w.api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

func (w *workload) headers(ctx context.Context) error {
	_, err := w.firstX509(ctx)
	if status.Code(err) == codes.Unavailable {
		return fmt.Errorf("%s does not answer: %w", w.Socket, err)
	}
	w.Say("endpoint-header", status.Code(err) == codes.InvalidArgument, "%v", status.Code(err))
	_, err = w.firstX509(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "yes"))
	w.Say("endpoint-header-other", status.Code(err) == codes.InvalidArgument, "%v", status.Code(err))
	return nil
}

func (w *workload) denied(ctx context.Context) {
	if w.DeniedSocket == "" {
		w.Skip("no --denied-socket", "endpoint-denied")
		return
	}
	conn, err := dial(w.DeniedSocket)
	if err != nil {
		w.Say("endpoint-denied", false, "%v", err)
		return
	}
	defer conn.Close()
	other := &workload{Config: w.Config, api: workloadpb.NewSpiffeWorkloadAPIClient(conn)}
	_, err = other.firstX509(withHeader(ctx))
	w.Say("endpoint-denied", status.Code(err) == codes.PermissionDenied, "%v", status.Code(err))
}

// x509 judges the stream of X509-SVIDs.
func (w *workload) x509(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(withHeader(ctx))
	defer cancel()
	started := time.Now()
	limit := time.AfterFunc(w.Timeout, cancel)
	stream, err := w.api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	var first *workloadpb.X509SVIDResponse
	if err == nil {
		first, err = stream.Recv()
	}
	limit.Stop()
	if err != nil {
		w.Say("x509-svids", false, "%v", err)
		return false
	}
	w.Say("x509-prompt", time.Since(started) < prompt, "after %s", time.Since(started).Round(time.Millisecond))
	w.checkX509Message(first)
	if len(first.GetSvids()) == 0 {
		return false
	}
	for _, s := range first.GetSvids() {
		w.ids = append(w.ids, s.GetSpiffeId())
	}
	w.bundle = first.GetSvids()[0].GetBundle()
	td, _ := w.checkID(w.ids[0])
	w.domain = "spiffe://" + td
	w.follow(ctx, stream, first, cancel)
	return true
}

// follow judges what comes later on the stream: after a rotation it holds the
// same identities, not only the one that is new.
func (w *workload) follow(ctx context.Context, stream grpc.ServerStreamingClient[workloadpb.X509SVIDResponse], last *workloadpb.X509SVIDResponse, cancel func()) {
	if w.Watch == 0 {
		w.Skip("no --watch", "x509-whole")
		return
	}
	limit := time.AfterFunc(w.Watch, cancel)
	defer limit.Stop()
	for {
		next, err := stream.Recv()
		if err != nil {
			if ctx.Err() == nil {
				w.Say("x509-whole", false, "the stream ended: %v", err)
			}
			w.Skip("nothing changed while watching", "x509-whole")
			return
		}
		w.checkX509Message(next)
		w.Say("x509-whole", len(next.GetSvids()) >= len(last.GetSvids()), "%d identities, then %d", len(last.GetSvids()), len(next.GetSvids()))
		last = next
	}
}

func (w *workload) x509Bundles(ctx context.Context) {
	ctx, cancel := context.WithTimeout(withHeader(ctx), w.Timeout)
	defer cancel()
	stream, err := w.api.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
	var m *workloadpb.X509BundlesResponse
	if err == nil {
		m, err = stream.Recv()
	}
	if err != nil {
		w.Say("x509-bundles-own", false, "%v", err)
		return
	}
	own, found := m.GetBundles()[w.domain]
	w.Say("x509-bundles-own", found, "no bundle of %s", w.domain)
	w.Say("x509-bundles-same", bytes.Equal(own, w.bundle), "they differ")
	for td := range m.GetBundles() {
		w.Say("x509-bundles-keys", isTrustDomainID(td), "%q", td)
	}
}

// jwtSVIDs asks for JWT-SVIDs, of id or of all identities.
func (w *workload) jwtSVIDs(ctx context.Context, id string, audience ...string) (*workloadpb.JWTSVIDResponse, error) {
	ctx, cancel := context.WithTimeout(withHeader(ctx), w.Timeout)
	defer cancel()
	return w.api.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{SpiffeId: id, Audience: audience})
}

// unsupported tells whether an implementation leaves a profile out.
func unsupported(err error) bool { return status.Code(err) == codes.Unimplemented }

func jwtIDs(m *workloadpb.JWTSVIDResponse) []string {
	var ids []string
	for _, s := range m.GetSvids() {
		ids = append(ids, s.GetSpiffeId())
	}
	return ids
}

func sameSet(a, b []string) bool {
	a, b = slices.Compact(slices.Sorted(slices.Values(a))), slices.Compact(slices.Sorted(slices.Values(b)))
	return slices.Equal(a, b)
}

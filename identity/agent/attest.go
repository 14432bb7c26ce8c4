package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/attest/jointoken"
	"github.com/writ-dev/writ/internal/tracing"
)

// load takes up what was kept. It returns false where the node must be attested
// because there is no SVID that is still valid.
func (a *Agent) load() (bool, error) {
	bundle, err := a.keep.bundle(a.td)
	svid, serr := a.keep.svid()
	for _, err := range []error{err, serr} {
		if damaged := (*damagedError)(nil); errors.As(err, &damaged) {
			a.log.Error("the node has to be attested anew", "error", err)
			a.notKept = errors.Join(a.notKept, err)
		} else if err != nil {
			return false, fmt.Errorf("data directory: %w", err)
		}
	}
	if bundle == nil || bundle.Empty() || svid == nil {
		return false, nil
	}
	if svid.ID.TrustDomain() != a.td {
		return false, fmt.Errorf("kept SVID is of %s, but the trust domain is now %s: give the agent another data directory", svid.ID, a.td)
	}
	a.self.bundle.Store(bundle)
	if err := verify(svid.Certificates, bundle); err != nil && !aheadOfUs(err) {
		a.notKept = err
		a.log.Info("kept SVID cannot be used", "spiffe_id", svid.ID.String(), "error", err)
		return false, nil
	}
	a.self.svid.Store(svid)
	return true, nil
}

// proof is what proves the node once: it is made anew for each attestation.
type proof struct {
	data   *types.AttestationData
	answer func(challenge []byte) ([]byte, error)
	// presented is called before it is sent: what is lost on the way back was
	// accepted all the same, perhaps.
	presented func() error
	// undecided is called where the issuer says that it has used nothing up.
	undecided func() error
}

func (a *Agent) newProof(ctx context.Context) (*proof, error) {
	if a.opt.Attestor == nil {
		return a.tokenProof()
	}
	payload, answer, err := a.opt.Attestor.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &proof{
		data:      &types.AttestationData{Type: a.opt.Attestor.Type(), Payload: payload},
		answer:    answer,
		presented: func() error { return nil },
		undecided: func() error { return nil },
	}, nil
}

// tokenProof is a join token that this agent has not presented.
func (a *Agent) tokenProof() (*proof, error) {
	token, err := a.opt.Token()
	if err != nil {
		return nil, err
	}
	if token == "" {
		return nil, fmt.Errorf("%w: create one (policyctl token create) and give it as a file or in %s", ErrNoToken, jointoken.Env)
	}
	used, err := a.keep.tokenUsed(token)
	if err != nil {
		return nil, err
	}
	if used {
		return nil, fmt.Errorf("%w: the one given was presented by this agent before, and works once: create another (policyctl token create)", ErrNoToken)
	}
	return &proof{
		data:      jointoken.Data(token),
		answer:    func([]byte) ([]byte, error) { return nil, errors.New("a join token answers no challenge") },
		presented: func() error { return a.keep.markTokenUsed(token) },
		undecided: func() error { return a.keep.unmarkToken(token) },
	}, nil
}

// attest proves the node to an issuer that it knows by configuration, and
// becomes an agent. It changes nothing unless all of it succeeds.
func (a *Agent) attest(ctx context.Context, p *proof) error {
	config, shown, err := a.bootstrapTLS()
	if err != nil {
		return err
	}
	return a.attestOver(ctx, p, config, shown)
}

// attestOver is attest over connections of config. shown checks what the issuer
// showed against the bundle that it then gave.
func (a *Agent) attestOver(ctx context.Context, p *proof, config *tls.Config, shown func(*x509bundle.Bundle) error) (err error) {
	ctx, span := a.opt.Tracer.Begin(ctx, "attest node")
	defer func() { span.End(err) }()
	span.String(tracing.Attestation, p.data.Type)
	// It is not repeated here: a replica that does not answer may have used up
	// the token.
	l := newLink(0, func(l *link) (*session, error) { return a.dial(l, config) })
	defer l.close()
	var svid *x509svid.SVID
	var bundle *bundle
	var reattestable bool
	err = l.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) error {
		key, csr, err := newKey()
		if err != nil {
			return err
		}
		result, err := exchange(ctx, agentv1.NewAgentClient(cc), p, csr)
		if err != nil {
			return err
		}
		reattestable = result.Reattestable
		reply, err := bundlev1.NewBundleClient(cc).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		if err != nil {
			return fmt.Errorf("get trust bundle: %w", err)
		}
		if bundle, err = parseBundle(reply, a.td); err != nil {
			return err
		}
		if svid, err = acceptSVID(result.Svid, key, spiffeid.ID{}, bundle.x509); ofClocks(err) != nil {
			// It is kept: the proof may be used up, and the clocks will agree.
			a.log.Error("what the issuer gave to the agent is not valid by this machine's clock", "error", err)
		} else if err != nil {
			return fmt.Errorf("the SVID given to the agent: %w", err)
		}
		return shown(bundle.x509)
	})
	if err != nil {
		if d := l.distrusted(); d != nil {
			return d
		}
		return err
	}
	if want := spiffeid.RequireFromPath(a.td, "/spire/agent").String() + "/"; !strings.HasPrefix(svid.ID.String(), want) {
		return fmt.Errorf("the issuer calls the agent %s, which is not an agent's ID (%s…)", svid.ID, want)
	}
	if err := errors.Join(a.keep.saveBundle(bundle.x509), a.keep.saveSVID(svid)); err != nil {
		return fmt.Errorf("keep SVID: %w", err)
	}
	a.reattest.Store(reattestable && a.opt.Attestor != nil)
	a.self.bundle.Store(bundle.x509)
	a.self.set(svid)
	a.cache.tell()
	a.link.replace(nil)
	span.String(tracing.SPIFFEID, agentName(svid.ID))
	a.log.Info("node attested", "method", p.data.Type, "spiffe_id", agentName(svid.ID), "expires", svid.Certificates[0].NotAfter)
	return nil
}

// agentName is an agent's ID without the token that it may be made of: used up,
// but still nothing for a log.
func agentName(id spiffeid.ID) string {
	prefix := "/spire/agent/" + jointoken.Type + "/"
	if token, ok := strings.CutPrefix(id.Path(), prefix); ok {
		return spiffeid.RequireFromPath(id.TrustDomain(), prefix+hashToken(token)[:12]).String() + " (token hashed)"
	}
	return id.String()
}

// maxChallenges is how many questions an issuer may ask. The methods there are
// ask one.
const maxChallenges = 8

// exchange is AttestAgent.
func exchange(ctx context.Context, client agentv1.AgentClient, p *proof, csr []byte) (result *agentv1.AttestAgentResponse_Result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.AttestAgent(ctx)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	if err := p.presented(); err != nil {
		return nil, fmt.Errorf("note that the proof is presented: %w", err)
	}
	defer func() {
		if usedNothing(err) {
			err = errors.Join(err, p.undecided())
		}
	}()
	// Of a stream that has ended, Recv tells why and Send does not.
	_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   p.data,
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}})
	for range maxChallenges {
		reply, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("attest: %w", err)
		}
		if result := reply.GetResult(); result != nil {
			return result, stream.CloseSend()
		}
		answer, err := p.answer(reply.GetChallenge())
		if err != nil {
			return nil, fmt.Errorf("attest: the issuer asks a question: %w", err)
		}
		_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: answer}})
	}
	return nil, fmt.Errorf("attest: the issuer asked %d questions and did not decide", maxChallenges)
}

// usedNothing tells that the issuer answered an attestation without deciding it. A
// connection that broke says nothing of what became of the proof.
func usedNothing(err error) bool {
	switch _, told := admit.RetryAfter(err); status.Code(err) {
	case codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.FailedPrecondition, codes.Unimplemented:
		return true
	default:
		return told
	}
}

// bootstrapTLS verifies the issuer against the configured bundle and the one
// kept, and without either, if that is allowed, not at all. shown checks what
// the issuer showed against the bundle that it then gave.
func (a *Agent) bootstrapTLS() (config *tls.Config, shown func(*x509bundle.Bundle) error, err error) {
	roots, err := a.bootstrapBundle()
	if err != nil {
		return nil, nil, err
	}
	if !roots.Empty() {
		return a.issuerTLS(roots), func(*x509bundle.Bundle) error { return nil }, nil
	}
	if !a.cfg.InsecureBootstrap {
		return nil, nil, errors.New("no trust bundle: give the issuer's (trust_bundle), or for an experiment trust whoever answers (insecure_bootstrap)")
	}
	a.log.Warn("trusting the issuer that answers first: anybody in between could be it", "server", a.cfg.ServerAddress)
	var peer []*x509.Certificate
	config = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // asked for by insecure_bootstrap
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer = cs.PeerCertificates
			return nil
		},
	}
	return config, func(b *x509bundle.Bundle) error {
		return a.issuerTLS(b).VerifyConnection(tls.ConnectionState{PeerCertificates: peer})
	}, nil
}

func (a *Agent) bootstrapBundle() (*x509bundle.Bundle, error) {
	roots := x509bundle.New(a.td)
	if a.cfg.TrustBundle != "" {
		configured, err := x509bundle.Load(a.td, a.cfg.TrustBundle)
		if err != nil {
			return nil, fmt.Errorf("trust bundle: %w", err)
		}
		if configured.Empty() {
			return nil, fmt.Errorf("trust bundle: no certificate in %s", a.cfg.TrustBundle)
		}
		roots.SetX509Authorities(configured.X509Authorities())
	}
	// The kept one came from the issuer itself, and may be newer than the file.
	if kept := a.self.bundle.Load(); kept != nil {
		for _, cert := range kept.X509Authorities() {
			roots.AddX509Authority(cert)
		}
	}
	return roots, nil
}

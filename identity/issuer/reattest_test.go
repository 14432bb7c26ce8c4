package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/attest/server"
	serverpop "github.com/writ-dev/writ/identity/attest/server/x509pop"
	"github.com/writ-dev/writ/identity/attest/x509pop"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/internal/testpki"
)

// machine is a node with a certificate of its own.
type machine struct {
	w     *world
	files x509pop.Config
	key   *ecdsa.PrivateKey
}

// newMachines makes an issuer that takes certificates and join tokens, and one
// machine.
func newMachines(t *testing.T, options ...option) (*world, *machine) {
	t.Helper()
	pki, key, dir := testpki.NewMachines(t), newKey(t), t.TempDir()
	bundle := testpki.WritePEM(t, dir, "ca.pem", nil, pki.Cert)
	pop, err := serverpop.New(serverpop.Config{TrustDomain: td, CABundles: []string{bundle}})
	must(t, err)
	w := newWorld(t, append(options, func(c *issuer.Config, _ *ca.Config) {
		c.Attestors = []server.Attestor{server.JoinToken{TrustDomain: td}, pop}
	})...)
	return w, &machine{w: w, key: key, files: x509pop.Config{
		Cert: testpki.WritePEM(t, dir, "m.pem", nil, pki.Machine(t, "m1", key.Public())), Key: testpki.WritePEM(t, dir, "m.key", key),
	}}
}

// attest is one attestation; spoil may change the answer.
func (m *machine) attest(ctx context.Context, spoil func([]byte) []byte) (*agent, *agentv1.AttestAgentResponse_Result, error) {
	t := m.w.t
	conn := m.w.dial(nil)
	defer conn.Close()
	payload, answer, err := x509pop.Attestor{Files: m.files}.Begin(ctx)
	must(t, err)
	key := newKey(t)
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	must(t, err)
	must(t, stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "x509pop", Payload: payload},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, key, "")},
	}}}))
	asked, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	response, err := answer(asked.GetChallenge())
	must(t, err)
	if spoil != nil {
		response = spoil(response)
	}
	must(t, stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: response}}))
	reply, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	a := &agent{w: m.w}
	a.adopt(reply.GetResult().GetSvid(), key)
	t.Cleanup(func() { a.conn.Close() })
	return a, reply.GetResult(), nil
}

func TestAttestAgain(t *testing.T) {
	w, m := newMachines(t)
	ctx := t.Context()
	first, result, err := m.attest(ctx, nil)
	must(t, err)
	if !result.Reattestable {
		t.Error("the agent is not told that it can attest again")
	}
	_, err = first.agents().RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, first.key, "")}})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_MUST_REATTEST)

	second, _, err := m.attest(ctx, nil)
	must(t, err)
	if second.id != first.id {
		t.Errorf("it is %s, and was %s", second.id, first.id)
	}
	// Until the new SVID is shown, calls with the old one go on.
	_, err = first.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	_, err = second.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	_, err = first.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	got, err := w.agents().GetAgent(ctx, &agentv1.GetAgentRequest{Id: id(first.id.Path())})
	must(t, err)
	if !got.CanReattest || got.AttestationType != "x509pop" || got.X509SvidSerialNumber != second.cert.SerialNumber.String() || len(got.Selectors) != 3 {
		t.Errorf("on file: %v", got)
	}
}

func TestBannedStaysOut(t *testing.T) {
	w, m := newMachines(t)
	ctx := t.Context()
	a, _, err := m.attest(ctx, nil)
	must(t, err)
	_, err = w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	_, _, err = m.attest(ctx, nil)
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)
	// The ban outlives what the agent had.
	w.clock.advance(30 * time.Minute)
	must(t, w.issuer.Prune(ctx))
	_, _, err = m.attest(ctx, nil)
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)

	_, err = w.agents().DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED)
	again, _, err := m.attest(ctx, nil)
	must(t, err)
	_, err = again.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
}

// Every attempt that fails is on record, with its cause and who made it.
func TestFailedAttemptsAreRecorded(t *testing.T) {
	w, m := newMachines(t)
	ctx := t.Context()
	_, _, err := m.attest(ctx, func([]byte) []byte { return []byte(`{}`) })
	wantCode(t, err, codes.InvalidArgument)

	// One that goes away instead of answering.
	leaving, leave := context.WithCancel(ctx)
	conn := w.dial(nil)
	defer conn.Close()
	payload, _, err := x509pop.Attestor{Files: m.files}.Begin(ctx)
	must(t, err)
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(leaving)
	must(t, err)
	send := func(method string) {
		must(t, stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: method, Payload: payload},
			Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, newKey(t), "")},
		}}}))
	}
	send("x509pop")
	_, err = stream.Recv()
	must(t, err)
	must(t, stream.CloseSend())
	_, err = stream.Recv()
	wantCode(t, err, codes.InvalidArgument)
	leave()

	stream, err = agentv1.NewAgentClient(conn).AttestAgent(ctx)
	must(t, err)
	send("aws_iid" + strings.Repeat("x", 1000))
	_, err = stream.Recv()
	wantCode(t, err, codes.Unimplemented)
	if !strings.Contains(err.Error(), "served: join_token, x509pop") {
		t.Errorf("the error %v does not name what is served", err)
	}

	var reasons []string
	for _, act := range w.did("agent", "attested") {
		if !act.Failed || !strings.HasPrefix(act.Actor, "ip:127.0.0.1") || len(act.Details[0][1]) > 64 {
			t.Errorf("recorded: %+v", act)
		}
		reasons = append(reasons, act.Reason)
	}
	got := strings.Join(reasons, "\n")
	for _, want := range []string{"no ECDSA signature", "no answer to the challenge", "method not served"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is not once in:\n%s", want, got)
		}
	}
}

// An ID that two methods could give belongs to the one that came first.
func TestMethodsDoNotTakeOver(t *testing.T) {
	pki, key, dir := testpki.NewMachines(t), newKey(t), t.TempDir()
	pop, err := serverpop.New(serverpop.Config{TrustDomain: td, CABundles: []string{testpki.WritePEM(t, dir, "ca.pem", nil, pki.Cert)}, Path: "/join_token/{{ .Subject.CommonName }}"})
	must(t, err)
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) {
		c.Attestors = []server.Attestor{server.JoinToken{TrustDomain: td}, pop}
	})
	victim := w.join(w.token(""))
	m := &machine{w: w, key: key, files: x509pop.Config{
		Cert: testpki.WritePEM(t, dir, "m.pem", nil, pki.Machine(t, filepath.Base(victim.id.Path()), key.Public())), Key: testpki.WritePEM(t, dir, "m.key", key),
	}}
	_, _, err = m.attest(t.Context(), nil)
	wantCode(t, err, codes.InvalidArgument)
	_, err = victim.agents().PostStatus(t.Context(), &agentv1.PostStatusRequest{})
	must(t, err)
}

func TestJoinTokensOff(t *testing.T) {
	pki := testpki.NewMachines(t)
	pop, err := serverpop.New(serverpop.Config{TrustDomain: td, CABundles: []string{testpki.WritePEM(t, t.TempDir(), "ca.pem", nil, []*x509.Certificate{pki.Cert}...)}})
	must(t, err)
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.Attestors = []server.Attestor{pop} })
	_, err = w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = w.tryJoin("AAAAAAAAAAAAAAAAAAAAAAAAAA")
	wantCode(t, err, codes.Unimplemented)
}

// undecided is a method that cannot tell now.
type undecided struct{}

func (undecided) Type() string { return "x509pop" }
func (undecided) Attest(context.Context, []byte, server.Challenge) (*server.Attested, error) {
	return nil, errors.New("the API server of a cluster does not answer")
}

// What could not be decided is on record too, and the agent may try again.
func TestUndecidedAttempt(t *testing.T) {
	_, m := newMachines(t)
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.Attestors = []server.Attestor{undecided{}} })
	m.w = w
	_, _, err := m.attest(t.Context(), nil)
	wantCode(t, err, codes.Internal)
	acts := w.did("agent", "attested")
	if len(acts) != 1 || !acts[0].Failed || acts[0].Reason != "it could not be decided" {
		t.Errorf("on record: %+v", acts)
	}
}

// Every method has the limit, and one source's attempts by one are attempts by
// all.
func TestAttestationLimitOfEveryMethod(t *testing.T) {
	w, m := newMachines(t, func(c *issuer.Config, _ *ca.Config) { c.AttestPerSecond, c.AttestBurst = 0.0001, 2 })
	_, _, err := m.attest(t.Context(), func([]byte) []byte { return nil })
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.tryJoin("no-such-token-was-ever-made")
	wantCode(t, err, codes.InvalidArgument)
	_, _, err = m.attest(t.Context(), nil)
	wantCode(t, err, codes.ResourceExhausted)
}

package programs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// Issuer is a server that speaks SPIRE's server API: ours or SPIRE's own. It is
// administered through its Unix socket and used over TLS.
type Issuer struct {
	TrustDomain spiffeid.TrustDomain
	Addr        string

	admin *grpc.ClientConn
}

// DialIssuer opens the admin socket of a running issuer.
func DialIssuer(trustDomain, addr, adminSocket string) (*Issuer, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	admin, err := grpc.NewClient("unix:"+adminSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &Issuer{TrustDomain: td, Addr: addr, admin: admin}, nil
}

// Close closes the admin socket.
func (i *Issuer) Close() error { return i.admin.Close() }

// Admin is the connection to the admin socket.
func (i *Issuer) Admin() *grpc.ClientConn { return i.admin }

// Bundle is the trust bundle, as the admin socket tells it.
func (i *Issuer) Bundle(ctx context.Context) (*x509bundle.Bundle, error) {
	b, err := bundlev1.NewBundleClient(i.admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, fmt.Errorf("get bundle: %w", err)
	}
	bundle := x509bundle.New(i.TrustDomain)
	for _, a := range b.GetX509Authorities() {
		cert, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			return nil, err
		}
		bundle.AddX509Authority(cert)
	}
	if bundle.Empty() {
		return nil, errors.New("the bundle holds no X.509 authority")
	}
	return bundle, nil
}

// JoinToken makes a join token. The agent that uses it is also called alias,
// when that is not zero.
func (i *Issuer) JoinToken(ctx context.Context, alias spiffeid.ID) (string, error) {
	req := &agentv1.CreateJoinTokenRequest{Ttl: 600}
	if !alias.IsZero() {
		req.AgentId = protoID(alias)
	}
	token, err := agentv1.NewAgentClient(i.admin).CreateJoinToken(ctx, req)
	if err != nil {
		return "", fmt.Errorf("create join token: %w", err)
	}
	return token.GetValue(), nil
}

// CreateEntries creates entries and gives their ids.
func (i *Issuer) CreateEntries(ctx context.Context, entries ...*types.Entry) ([]string, error) {
	var ids []string
	for part := range slices.Chunk(entries, 100) {
		res, err := entryv1.NewEntryClient(i.admin).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: part})
		if err != nil {
			return nil, fmt.Errorf("create entries: %w", err)
		}
		for _, r := range res.GetResults() {
			if codes.Code(r.GetStatus().GetCode()) != codes.OK {
				return nil, fmt.Errorf("create entry: %s", r.GetStatus().GetMessage())
			}
			ids = append(ids, r.GetEntry().GetId())
		}
	}
	return ids, nil
}

// DeleteEntry deletes an entry.
func (i *Issuer) DeleteEntry(ctx context.Context, id string) error {
	res, err := entryv1.NewEntryClient(i.admin).BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
	if err != nil {
		return fmt.Errorf("delete entry: %w", err)
	}
	if s := res.GetResults()[0].GetStatus(); codes.Code(s.GetCode()) != codes.OK {
		return fmt.Errorf("delete entry: %s", s.GetMessage())
	}
	return nil
}

// Entry is an entry for workloads with the given selectors, as in
// unix:uid:1000.
func (i *Issuer) Entry(parent spiffeid.ID, path string, selectors ...string) (*types.Entry, error) {
	id, err := spiffeid.FromPath(i.TrustDomain, path)
	if err != nil {
		return nil, err
	}
	e := &types.Entry{ParentId: protoID(parent), SpiffeId: protoID(id)}
	for _, s := range selectors {
		kind, value, ok := strings.Cut(s, ":")
		if !ok {
			return nil, fmt.Errorf("selector %q: want type:value", s)
		}
		e.Selectors = append(e.Selectors, &types.Selector{Type: kind, Value: value})
	}
	return e, nil
}

func protoID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// Node is an agent's view of an issuer: its SVID and whom it trusts.
type Node struct {
	SVID   *x509svid.SVID
	issuer *Issuer
	bundle *x509bundle.Bundle
}

// Attest joins with a token, as a new agent does.
func (i *Issuer) Attest(ctx context.Context, token string) (*Node, error) {
	bundle, err := i.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(i.Addr, grpc.WithTransportCredentials(grpccredentials.TLSClientCredentials(bundle, i.server())))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, csr, err := keyAndCSR()
	if err != nil {
		return nil, err
	}
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}})
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	res, err := stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	svid, err := readSVID(key, res.GetResult().GetSvid(), bundle)
	if err != nil {
		return nil, err
	}
	return &Node{SVID: svid, issuer: i, bundle: bundle}, nil
}

// Dial opens a connection to the issuer with the agent's SVID.
func (n *Node) Dial() (*grpc.ClientConn, error) {
	creds := grpccredentials.MTLSClientCredentials(n.SVID, n.bundle, n.issuer.server())
	return grpc.NewClient(n.issuer.Addr, grpc.WithTransportCredentials(creds))
}

// CSR is a signing request for the key of the agent's SVID.
func (n *Node) CSR() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, n.SVID.PrivateKey)
}

// Sign gets an X509-SVID for an entry of this agent.
func (n *Node) Sign(ctx context.Context, entry string) (*x509svid.SVID, error) {
	conn, err := n.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, csr, err := keyAndCSR()
	if err != nil {
		return nil, err
	}
	res, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{
		Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: csr}},
	})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if s := res.GetResults()[0].GetStatus(); codes.Code(s.GetCode()) != codes.OK {
		return nil, fmt.Errorf("sign: %s", s.GetMessage())
	}
	return readSVID(key, res.GetResults()[0].GetSvid(), n.bundle)
}

func keyAndCSR() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// readSVID reads and verifies what the issuer signed.
func readSVID(key *ecdsa.PrivateKey, signed *types.X509SVID, bundle *x509bundle.Bundle) (*x509svid.SVID, error) {
	svid := &x509svid.SVID{PrivateKey: key}
	for _, der := range signed.GetCertChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	var err error
	if svid.ID, _, err = x509svid.Verify(svid.Certificates, bundle); err != nil {
		return nil, fmt.Errorf("the SVID that was issued: %w", err)
	}
	return svid, nil
}

// server is the identity that every issuer proves.
func (i *Issuer) server() tlsconfig.Authorizer {
	return tlsconfig.AuthorizeID(spiffeid.RequireFromSegments(i.TrustDomain, "spire", "server"))
}

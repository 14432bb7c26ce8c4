package issuer_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/watchv1"
)

// callers maps each method to who gets past authorization: a anonymous,
// w workload, n node agent, A admin by entry, d downstream by entry, l local. It is written out by
// hand, so that a change of the table in the code has to be made twice.
var callers = map[string]string{
	"Agent/AttestAgent": "awnAdl", "Agent/RenewAgent": "n", "Agent/PostStatus": "n", "Agent/CountAgents": "Al", "Agent/ListAgents": "Al",
	"Agent/GetAgent": "Al", "Agent/DeleteAgent": "Al", "Agent/BanAgent": "Al", "Agent/CreateJoinToken": "Al",
	"Entry/CountEntries": "Al", "Entry/ListEntries": "Al", "Entry/GetEntry": "Al", "Entry/BatchCreateEntry": "Al", "Entry/BatchUpdateEntry": "Al",
	"Entry/BatchDeleteEntry": "Al", "Entry/GetAuthorizedEntries": "n", "Entry/SyncAuthorizedEntries": "n",
	"SVID/MintX509SVID": "Al", "SVID/MintJWTSVID": "Al", "SVID/MintWITSVID": "Al", "SVID/BatchNewX509SVID": "n", "SVID/NewJWTSVID": "n",
	"SVID/BatchNewWITSVID": "n", "SVID/NewDownstreamX509CA": "d",
	"Bundle/GetBundle": "awnAdl", "Bundle/GetFederatedBundle": "nAl", "Bundle/CountBundles": "Al", "Bundle/AppendBundle": "Al",
	"Bundle/PublishJWTAuthority": "d", "Bundle/PublishWITAuthority": "Al", "Bundle/ListFederatedBundles": "Al",
	"Bundle/BatchCreateFederatedBundle": "Al", "Bundle/BatchUpdateFederatedBundle": "Al", "Bundle/BatchSetFederatedBundle": "Al", "Bundle/BatchDeleteFederatedBundle": "Al",
	"TrustDomain/ListFederationRelationships": "Al", "TrustDomain/GetFederationRelationship": "Al", "TrustDomain/BatchCreateFederationRelationship": "Al",
	"TrustDomain/BatchUpdateFederationRelationship": "Al", "TrustDomain/BatchDeleteFederationRelationship": "Al", "TrustDomain/RefreshBundle": "Al",
	"Logger/GetLogger": "Al", "Logger/SetLogLevel": "Al", "Logger/ResetLogLevel": "Al", "Debug/GetInfo": "Al",
	"LocalAuthority/GetX509AuthorityState": "Al", "LocalAuthority/PrepareX509Authority": "Al", "LocalAuthority/ActivateX509Authority": "Al",
	"LocalAuthority/TaintX509Authority": "Al", "LocalAuthority/TaintX509UpstreamAuthority": "Al", "LocalAuthority/RevokeX509Authority": "Al",
	"LocalAuthority/RevokeX509UpstreamAuthority": "Al", "LocalAuthority/GetJWTAuthorityState": "Al", "LocalAuthority/PrepareJWTAuthority": "Al",
	"LocalAuthority/ActivateJWTAuthority": "Al", "LocalAuthority/TaintJWTAuthority": "Al", "LocalAuthority/RevokeJWTAuthority": "Al",
	"LocalAuthority/GetWITAuthorityState": "Al", "LocalAuthority/PrepareWITAuthority": "Al", "LocalAuthority/ActivateWITAuthority": "Al",
	"LocalAuthority/TaintWITAuthority": "Al", "LocalAuthority/RevokeWITAuthority": "Al",
	"Admin/Create": "Al", "Admin/Get": "Al", "Admin/List": "Al", "Admin/Update": "Al", "Admin/Delete": "Al", // of templates
	"Issuance/Authorized": "n", "Issuance/NewX509SVIDs": "n", "Issuance/NewJWTSVID": "n",
	"EntryWatch/Watch": "n", "EntryWatch/Sync": "n", "Health/Check": "awnAdl", "Health/List": "awnAdl", "Health/Watch": "awnAdl",
}

// Every method of every service, called by every kind of caller.
func TestRights(t *testing.T) {
	w := newWorld(t)
	e := entry("/boss", "/node/a", "uid:1")
	e.Admin = true
	nested := entry("/nested", "/node/a", "uid:2")
	nested.Downstream = true
	w.create(e, nested)
	anon := w.dial(nil)
	defer anon.Close()
	conns := map[string]*grpc.ClientConn{
		"a": anon, "w": w.asWorkload(t, "/svc/web").conn, "n": w.join(w.token("/node/a")).conn, "A": w.asWorkload(t, "/boss").conn, "d": w.asWorkload(t, "/nested").conn, "l": w.admin,
	}
	seen := 0
	for _, desc := range []grpc.ServiceDesc{agentv1.Agent_ServiceDesc, bundlev1.Bundle_ServiceDesc, entryv1.Entry_ServiceDesc, svidv1.SVID_ServiceDesc, trustdomainv1.TrustDomain_ServiceDesc, loggerv1.Logger_ServiceDesc, debugv1.Debug_ServiceDesc, localauthorityv1.LocalAuthority_ServiceDesc, watchv1.EntryWatch_ServiceDesc, templatev1.Admin_ServiceDesc, templatev1.Issuance_ServiceDesc, healthv1.Health_ServiceDesc} {
		service := desc.ServiceName[strings.LastIndex(desc.ServiceName, ".")+1:]
		check := func(method string, call func(ctx context.Context, conn *grpc.ClientConn, full string) error) {
			seen++
			allowed, known := callers[service+"/"+method]
			if !known {
				t.Errorf("%s/%s: nobody has said who may call it", service, method)
			}
			for who, conn := range conns {
				ctx, cancel := context.WithCancel(t.Context())
				err := call(ctx, conn, "/"+desc.ServiceName+"/"+method)
				cancel()
				denied := status.Code(err) == codes.PermissionDenied
				if denied == strings.Contains(allowed, who) {
					t.Errorf("%s/%s by %s: %v", service, method, who, err)
				}
				if denied && allowed == "n" && !hasDetails(err) {
					t.Errorf("%s/%s by %s: denied without details", service, method, who)
				}
			}
		}
		for _, m := range desc.Methods {
			check(m.MethodName, func(ctx context.Context, conn *grpc.ClientConn, full string) error {
				return conn.Invoke(ctx, full, &emptypb.Empty{}, &emptypb.Empty{})
			})
		}
		for _, m := range desc.Streams {
			check(m.StreamName, func(ctx context.Context, conn *grpc.ClientConn, full string) error {
				stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, full)
				if err != nil {
					return err
				}
				_ = stream.SendMsg(&emptypb.Empty{}) // an early refusal shows in RecvMsg
				_ = stream.CloseSend()
				return stream.RecvMsg(&emptypb.Empty{})
			})
		}
	}
	if seen != len(callers) {
		t.Errorf("%d methods are served, %d are in the table", seen, len(callers))
	}
}

func hasDetails(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if _, ok := d.(*types.PermissionDeniedDetails); ok {
			return true
		}
	}
	return false
}

// A server that cannot say who calls serves nothing, not even what anyone may
// call.
func TestUnknownCallersAreRefused(t *testing.T) {
	w := newWorld(t)
	for name, caller := range map[string]issuer.CallerFunc{
		"zero caller":    func(context.Context) (issuer.Caller, error) { return issuer.Caller{}, nil },
		"error":          func(context.Context) (issuer.Caller, error) { return issuer.Caller{}, net.ErrClosed },
		"TLS over plain": issuer.TLSCaller,
	} {
		t.Run(name, func(t *testing.T) {
			server := grpc.NewServer()
			w.issuer.Register(server, caller)
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			must(t, err)
			done := make(chan error)
			go func() { done <- server.Serve(l) }()
			defer func() { server.Stop(); <-done }()
			conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
			must(t, err)
			defer conn.Close()
			_, err = bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
			if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unauthenticated {
				t.Errorf("got %v", err)
			}
		})
	}
}

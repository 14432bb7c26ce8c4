package issuer

import (
	"context"
	"errors"
	"slices"
	"time"

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
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/replicav1"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/identity/withheldv1"
	"github.com/writ-dev/writ/internal/tracing"
)

// right is who may call a method.
type right int

const (
	noOne right = iota
	anyone
	// activeAgent is an agent with its current SVID, not banned.
	activeAgent
	// admin is a local administrator, or a workload whose entry says admin.
	admin
	agentOrAdmin
	// downstream is an issuer below this one: a workload whose entry says so.
	downstream
)

// methodRights is the whole authorization of the API. What is missing here is
// refused.
func methodRights() map[string]right {
	return map[string]right{
		agentv1.Agent_AttestAgent_FullMethodName:     anyone,
		agentv1.Agent_RenewAgent_FullMethodName:      activeAgent,
		agentv1.Agent_PostStatus_FullMethodName:      activeAgent,
		agentv1.Agent_CountAgents_FullMethodName:     admin,
		agentv1.Agent_ListAgents_FullMethodName:      admin,
		agentv1.Agent_GetAgent_FullMethodName:        admin,
		agentv1.Agent_DeleteAgent_FullMethodName:     admin,
		agentv1.Agent_BanAgent_FullMethodName:        admin,
		agentv1.Agent_CreateJoinToken_FullMethodName: admin,

		entryv1.Entry_CountEntries_FullMethodName:          admin,
		entryv1.Entry_ListEntries_FullMethodName:           admin,
		entryv1.Entry_GetEntry_FullMethodName:              admin,
		entryv1.Entry_BatchCreateEntry_FullMethodName:      admin,
		entryv1.Entry_BatchUpdateEntry_FullMethodName:      admin,
		entryv1.Entry_BatchDeleteEntry_FullMethodName:      admin,
		entryv1.Entry_GetAuthorizedEntries_FullMethodName:  activeAgent,
		entryv1.Entry_SyncAuthorizedEntries_FullMethodName: activeAgent,

		svidv1.SVID_MintX509SVID_FullMethodName:        admin,
		svidv1.SVID_MintJWTSVID_FullMethodName:         admin,
		svidv1.SVID_MintWITSVID_FullMethodName:         admin,
		svidv1.SVID_BatchNewX509SVID_FullMethodName:    activeAgent,
		svidv1.SVID_NewJWTSVID_FullMethodName:          activeAgent,
		svidv1.SVID_BatchNewWITSVID_FullMethodName:     activeAgent,
		svidv1.SVID_NewDownstreamX509CA_FullMethodName: downstream,

		bundlev1.Bundle_GetBundle_FullMethodName:                  anyone,
		bundlev1.Bundle_GetFederatedBundle_FullMethodName:         agentOrAdmin,
		bundlev1.Bundle_CountBundles_FullMethodName:               admin,
		bundlev1.Bundle_AppendBundle_FullMethodName:               admin,
		bundlev1.Bundle_PublishJWTAuthority_FullMethodName:        downstream,
		bundlev1.Bundle_PublishWITAuthority_FullMethodName:        admin,
		bundlev1.Bundle_ListFederatedBundles_FullMethodName:       admin,
		bundlev1.Bundle_BatchCreateFederatedBundle_FullMethodName: admin,
		bundlev1.Bundle_BatchUpdateFederatedBundle_FullMethodName: admin,
		bundlev1.Bundle_BatchSetFederatedBundle_FullMethodName:    admin,
		bundlev1.Bundle_BatchDeleteFederatedBundle_FullMethodName: admin,

		trustdomainv1.TrustDomain_ListFederationRelationships_FullMethodName:       admin,
		trustdomainv1.TrustDomain_GetFederationRelationship_FullMethodName:         admin,
		trustdomainv1.TrustDomain_BatchCreateFederationRelationship_FullMethodName: admin,
		trustdomainv1.TrustDomain_BatchUpdateFederationRelationship_FullMethodName: admin,
		trustdomainv1.TrustDomain_BatchDeleteFederationRelationship_FullMethodName: admin,
		trustdomainv1.TrustDomain_RefreshBundle_FullMethodName:                     admin,

		loggerv1.Logger_GetLogger_FullMethodName:     admin,
		loggerv1.Logger_SetLogLevel_FullMethodName:   admin,
		loggerv1.Logger_ResetLogLevel_FullMethodName: admin,

		debugv1.Debug_GetInfo_FullMethodName: admin,

		localauthorityv1.LocalAuthority_GetX509AuthorityState_FullMethodName:       admin,
		localauthorityv1.LocalAuthority_PrepareX509Authority_FullMethodName:        admin,
		localauthorityv1.LocalAuthority_ActivateX509Authority_FullMethodName:       admin,
		localauthorityv1.LocalAuthority_TaintX509Authority_FullMethodName:          admin,
		localauthorityv1.LocalAuthority_TaintX509UpstreamAuthority_FullMethodName:  admin,
		localauthorityv1.LocalAuthority_RevokeX509Authority_FullMethodName:         admin,
		localauthorityv1.LocalAuthority_RevokeX509UpstreamAuthority_FullMethodName: admin,
		localauthorityv1.LocalAuthority_GetJWTAuthorityState_FullMethodName:        admin,
		localauthorityv1.LocalAuthority_PrepareJWTAuthority_FullMethodName:         admin,
		localauthorityv1.LocalAuthority_ActivateJWTAuthority_FullMethodName:        admin,
		localauthorityv1.LocalAuthority_TaintJWTAuthority_FullMethodName:           admin,
		localauthorityv1.LocalAuthority_RevokeJWTAuthority_FullMethodName:          admin,
		localauthorityv1.LocalAuthority_GetWITAuthorityState_FullMethodName:        admin,
		localauthorityv1.LocalAuthority_PrepareWITAuthority_FullMethodName:         admin,
		localauthorityv1.LocalAuthority_ActivateWITAuthority_FullMethodName:        admin,
		localauthorityv1.LocalAuthority_TaintWITAuthority_FullMethodName:           admin,
		localauthorityv1.LocalAuthority_RevokeWITAuthority_FullMethodName:          admin,

		watchv1.EntryWatch_Watch_FullMethodName: activeAgent,
		watchv1.EntryWatch_Sync_FullMethodName:  activeAgent,

		replicav1.Admin_List_FullMethodName:   admin,
		replicav1.Admin_Remove_FullMethodName: admin,

		withheldv1.Admin_List_FullMethodName:   admin,
		withheldv1.Admin_Accept_FullMethodName: admin,

		revocationv1.Admin_Revoke_FullMethodName: admin,
		revocationv1.Admin_List_FullMethodName:   admin,

		templatev1.Admin_Create_FullMethodName: admin,
		templatev1.Admin_Get_FullMethodName:    admin,
		templatev1.Admin_List_FullMethodName:   admin,
		templatev1.Admin_Update_FullMethodName: admin,
		templatev1.Admin_Delete_FullMethodName: admin,

		templatev1.Issuance_Authorized_FullMethodName:   activeAgent,
		templatev1.Issuance_NewX509SVIDs_FullMethodName: activeAgent,
		templatev1.Issuance_NewJWTSVID_FullMethodName:   activeAgent,

		healthv1.Health_Check_FullMethodName: anyone,
		healthv1.Health_List_FullMethodName:  anyone,
		healthv1.Health_Watch_FullMethodName: anyone,
	}
}

// register puts a service on a server with the table of rights before each of
// its methods. It is done here, not by interceptors, so that no server can
// carry the service without it.
func (i *Issuer) register(s grpc.ServiceRegistrar, caller CallerFunc, desc *grpc.ServiceDesc, service any) {
	// req is nil for a stream: nothing has been read of it, and an admin policy
	// decides about everything that could be.
	admit := func(ctx context.Context, name string, req any) (context.Context, error) {
		method := "/" + desc.ServiceName + "/" + name
		c, err := caller(ctx)
		if err != nil {
			if _, ok := status.FromError(err); !ok {
				err = status.Error(codes.Unauthenticated, "caller is not known")
			}
			return nil, err
		}
		if span := tracing.Current(ctx); span.Recorded() {
			span.String(tracing.Caller, c.Actor())
		}
		if err := i.authorize(ctx, c, method); err != nil {
			return nil, err
		}
		ctx = withCaller(ctx, c)
		return ctx, i.restrict(ctx, method, req)
	}
	guarded := *desc
	guarded.Methods = slices.Clone(desc.Methods)
	for n, m := range desc.Methods {
		guarded.Methods[n].Handler = func(srv any, ctx context.Context, decode func(any) error, outer grpc.UnaryServerInterceptor) (any, error) {
			return m.Handler(srv, ctx, decode, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				inner := func(ctx context.Context, req any) (any, error) {
					ctx, err := admit(ctx, m.MethodName, req)
					if err != nil {
						return nil, err
					}
					return handler(ctx, req)
				}
				if outer == nil {
					return inner(ctx, req)
				}
				return outer(ctx, req, info, inner)
			})
		}
	}
	guarded.Streams = slices.Clone(desc.Streams)
	for n, m := range desc.Streams {
		guarded.Streams[n].Handler = func(srv any, stream grpc.ServerStream) error {
			ctx, err := admit(stream.Context(), m.StreamName, nil)
			if err != nil {
				return err
			}
			return m.Handler(srv, &admittedStream{ServerStream: stream, ctx: ctx})
		}
	}
	s.RegisterService(&guarded, service)
}

type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *admittedStream) Context() context.Context { return s.ctx }

func (i *Issuer) authorize(ctx context.Context, c Caller, method string) error {
	if c.kind == nobody {
		return status.Error(codes.PermissionDenied, "caller is not known")
	}
	if err := i.checkRevoked(c); err != nil {
		return err
	}
	switch i.rights[method] {
	case anyone:
		return nil
	case activeAgent:
		return i.checkAgent(ctx, c)
	case admin:
		return i.checkAdmin(c)
	case agentOrAdmin:
		if i.checkAdmin(c) == nil {
			return nil
		}
		return i.checkAgent(ctx, c)
	case downstream:
		return i.checkDownstream(c)
	}
	return status.Error(codes.PermissionDenied, "nobody may call this method")
}

// restrict asks the admin policy, where there is one, about what an entry marked
// admin makes its holder an administrator for.
func (i *Issuer) restrict(ctx context.Context, method string, req any) error {
	c := callerOf(ctx)
	right := i.rights[method]
	if i.cfg.AdminPolicy == nil || c.kind != svid || right != admin && (right != agentOrAdmin || i.checkAgent(ctx, c) == nil) {
		return nil
	}
	return i.cfg.AdminPolicy(ctx, c.id, method, req)
}

func (i *Issuer) checkAdmin(c Caller) error {
	if err := i.fresh(); err != nil && c.kind == svid {
		return err
	}
	if c.kind == local || c.kind == remote || c.kind == svid && i.now().Before(c.expires) && i.index.IsAdmin(c.id, i.now()) {
		return nil
	}
	return status.Error(codes.PermissionDenied, "only administrators may call this: on the admin socket, or with the X509-SVID of an entry marked admin")
}

// checkAgent admits an agent with its current SVID, or with its renewed one,
// which thereby becomes the current one.
func (i *Issuer) checkAgent(ctx context.Context, c Caller) error {
	if c.kind != svid {
		return deny(types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "only agents may call this, with their X509-SVID")
	}
	if err := i.checkRevoked(c); err != nil {
		return err
	}
	if !i.now().Before(c.expires) {
		return deny(types.PermissionDeniedDetails_AGENT_EXPIRED, "the agent's SVID has expired: it ended at "+
			c.expires.UTC().Format(time.RFC3339)+", and the issuer's clock says "+i.now().UTC().Format(time.RFC3339))
	}
	if err := i.fresh(); err != nil {
		return err
	}
	a := i.index.Agent(c.id)
	if a == nil || !a.Banned && c.serial != a.Serial && c.serial != a.NewSerial {
		// Another replica may have attested or renewed it a moment ago.
		if err := i.refresh(ctx); err != nil {
			return err
		}
		a = i.index.Agent(c.id)
	}
	switch {
	case a == nil:
		return deny(types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "not an attested agent")
	case a.Banned:
		return deny(types.PermissionDeniedDetails_AGENT_BANNED, "the agent is banned")
	case c.serial == a.Serial:
		return nil
	case c.serial == a.NewSerial:
		return i.activate(ctx, c)
	}
	return deny(types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "the agent has a newer SVID than this")
}

// activate makes the agent's renewed SVID its current one.
func (i *Issuer) activate(ctx context.Context, c Caller) error {
	ctx, span := tracing.Start(ctx, "activate the agent's SVID")
	err := i.updateTogether(withCaller(ctx, c), urgent, func(tx *sqlstore.Tx, _ recorder) error {
		a, err := tx.Agent(c.id)
		switch {
		case errors.Is(err, registry.ErrNotFound):
			return deny(types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "not an attested agent")
		case err != nil:
			return err
		case a.Banned:
			return deny(types.PermissionDeniedDetails_AGENT_BANNED, "the agent is banned")
		case a.Serial == c.serial:
			return nil // another call of the same agent was first
		case a.NewSerial != c.serial:
			return deny(types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "the agent has a newer SVID than this")
		}
		next := *a
		next.Serial, next.ExpiresAt = a.NewSerial, a.NewExpiresAt
		next.NewSerial, next.NewExpiresAt = "", time.Time{}
		return tx.PutAgent(next)
	})
	span.End(err)
	if err != nil {
		return i.internal(ctx, "activate the agent's renewed SVID", err)
	}
	return nil
}

// deny is a PermissionDenied that tells an agent what to do about it.
func deny(reason types.PermissionDeniedDetails_Reason, message string) error {
	s, err := status.New(codes.PermissionDenied, message).WithDetails(&types.PermissionDeniedDetails{Reason: reason})
	if err != nil {
		return status.Error(codes.PermissionDenied, message)
	}
	return s.Err()
}

package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/limit"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

const (
	// Each call is an act on record, so that without a limit who may call
	// nothing could still fill the record.
	adminCallsPerSecond = 50
	adminCallsBurst     = 500
	// maxTargetsRecorded is how many targets of a call are put on record as
	// they are.
	maxTargetsRecorded = 16
	// maxAskedBytes of a request are shown to the admin policy, besides contents
	// such as a policy that is pushed. A larger one is refused: a rule that asks
	// for what must not be in a request would hold on one that it cannot see.
	maxAskedBytes = 1 << 20
	// maxAskedContent is how long a field of bytes may be that is shown.
	maxAskedContent = 4 << 10
)

// adminPolicy says who may administer over the network. The directory is read
// at each call, so that taking a right away is a matter of saving a file; a
// policy with problems changes nothing but raises an alarm.
type adminPolicy struct {
	dir     string
	emit    identity.Emit
	targets func(req any) (targets, parents []string)
	limits  *limit.Limits[spiffeid.ID]

	mu      sync.Mutex
	current *opa.AdminPolicy
	digest  [32]byte
	// refused is why what is in the directory is not in force; empty when it is.
	refused string
}

func openAdminPolicy(dir string, emit identity.Emit) (*adminPolicy, error) {
	p := &adminPolicy{
		dir: dir, emit: emit,
		targets: func(any) ([]string, []string) { return []string{issuer.Everything}, nil },
		limits:  limit.New[spiffeid.ID](adminCallsPerSecond, adminCallsBurst),
	}
	content, err := bundle.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("admin policy: %w", err)
	}
	if p.current, err = loadAdminPolicy(context.Background(), content); err != nil {
		return nil, fmt.Errorf("admin policy in %s: %w", dir, err)
	}
	p.digest = content.Digest()
	return p, nil
}

// loadAdminPolicy takes a policy whose tests pass.
func loadAdminPolicy(ctx context.Context, content bundle.Content) (*opa.AdminPolicy, error) {
	p, problems := opa.CheckAdmin(content)
	if len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	report, err := p.Test(ctx)
	if err != nil {
		return nil, err
	}
	if report.Failed > 0 {
		return nil, policy.Refused(report.Problems())
	}
	return p, nil
}

// inForce reads the directory again, and gives what is in force with its digest.
func (p *adminPolicy) inForce(ctx context.Context) (*opa.AdminPolicy, [32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	content, err := bundle.ReadDir(p.dir)
	if err == nil && content.Digest() == p.digest {
		p.refused = ""
		return p.current, p.digest
	}
	var next *opa.AdminPolicy
	if err == nil {
		next, err = loadAdminPolicy(ctx, content)
	}
	act := identity.Act{Kind: identity.ActAdmin, Verb: "activated", Actor: "writd", Object: "admin policy", ObjectID: p.dir}
	if err != nil {
		// Once for each reason: the directory is read at each call.
		if p.refused == err.Error() {
			return p.current, p.digest
		}
		p.refused = err.Error()
		act.Kind, act.Verb, act.Failed, act.Reason = identity.ActAlarm, "refused", true, oneLine(err.Error())
		_ = p.emit(ctx, act) // Nothing changed; the call itself is put on record next.
		return p.current, p.digest
	}
	digest := content.Digest()
	act.Details = [][2]string{{"sha256", hex.EncodeToString(digest[:])}}
	if p.emit(ctx, act) == nil {
		p.current, p.digest, p.refused = next, digest, ""
	}
	return p.current, p.digest
}

// allow decides a call and puts the decision on record. The error is for the
// wire, which does not learn what is in the policy. req is nil for streams.
func (p *adminPolicy) allow(ctx context.Context, id spiffeid.ID, method string, req any) error {
	if !p.limits.Allow(id) {
		return status.Error(codes.ResourceExhausted, "too many calls, try again later")
	}
	rego, digest := p.inForce(ctx)
	call := opa.AdminCall{
		CallerID: id.String(), CallerTrustDomain: id.TrustDomain().Name(), CallerPath: id.Path(),
		Method: method, Time: time.Now(),
	}
	call.Targets, call.Parents = p.targets(req)
	rules, err := p.ask(ctx, rego, call, req)
	act := identity.Act{
		Kind: identity.ActAdmin, Verb: "called", Actor: id.String(), Object: "admin method", ObjectID: method,
		Details: [][2]string{{"policy_sha256", hex.EncodeToString(digest[:])}},
	}
	for _, t := range call.Targets[:min(len(call.Targets), maxTargetsRecorded)] {
		act.Details = append(act.Details, [2]string{"target", t})
	}
	if more := len(call.Targets) - maxTargetsRecorded; more > 0 {
		act.Details = append(act.Details, [2]string{"more_targets", strconv.Itoa(more)})
	}
	for _, rule := range rules {
		act.Details = append(act.Details, [2]string{"rule", rule})
	}
	denied := status.Errorf(codes.PermissionDenied, "the admin policy does not allow %s to call %s on this", id, method)
	switch {
	case err != nil:
		act.Failed, act.Reason = true, oneLine(err.Error())
	case len(rules) == 0:
		act.Failed, act.Reason = true, "no rule of the admin policy allows it"
	default:
		denied = nil
	}
	if err := p.emit(ctx, act); err != nil {
		return status.Error(codes.Unavailable, "this cannot be put on record now, so it was not done")
	}
	return denied
}

func (p *adminPolicy) ask(ctx context.Context, rego *opa.AdminPolicy, call opa.AdminCall, req any) ([]string, error) {
	if m, ok := req.(proto.Message); ok {
		if m = withoutContents(m); proto.Size(m) > maxAskedBytes {
			return nil, fmt.Errorf("a request of %d bytes, and an admin policy decides about %d at most: make it several", proto.Size(m), maxAskedBytes)
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
		if err := json.Unmarshal(text, &call.Request); err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
	}
	return rego.Allow(ctx, call)
}

// withoutContents is m without the fields of bytes that are too long to be shown.
func withoutContents(m proto.Message) proto.Message {
	if proto.Size(m) <= maxAskedContent {
		return m
	}
	m = proto.Clone(m)
	dropContents(m.ProtoReflect())
	return m
}

func dropContents(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() == protoreflect.MessageKind && f.IsList():
			for i := range v.List().Len() {
				dropContents(v.List().Get(i).Message())
			}
		case f.Kind() == protoreflect.MessageKind && !f.IsMap():
			dropContents(v.Message())
		case f.Kind() == protoreflect.BytesKind && !f.IsList() && len(v.Bytes()) > maxAskedContent:
			m.Clear(f)
		}
		return true
	})
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

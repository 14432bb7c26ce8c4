package opa

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"github.com/writ-dev/writ/policy"
)

// DefaultTimeout bounds one decision. It is there for hostile policy, and it
// is wall-clock time: shorter, it would deny honest requests on a machine that
// is starved of processors.
const DefaultTimeout = time.Second

// maxReason bounds the reason of a decision, bytes.
const maxReason = 512

// maxPatterns bounds the compiled globs and regular expressions that are kept
// between decisions. A policy may make one from each request.
const maxPatterns = 256

// SnapshotConfig says under which revision a program is put in force.
type SnapshotConfig struct {
	Revision  policy.Revision
	Activated time.Time
	// Timeout of one decision; DefaultTimeout when 0.
	Timeout time.Duration
	// Outside is the way out for what data.writ.outside admits. When nil there
	// is none: a rule that would need it makes the decision an error, with
	// policy.Decision.Unasked.
	Outside *Outside
}

// Snapshot makes the program ready to decide. Nothing of it has to be closed.
func (p *Program) Snapshot(cfg SnapshotConfig) (*policy.Snapshot, error) {
	compiled, err := p.compiler.QueryCompiler().Compile(ast.MustParseBody("data.writ.decision = decision"))
	if err != nil {
		return nil, fmt.Errorf("prepare policy: %w", err)
	}
	d := &decider{
		outside:    cfg.Outside.reach(p.catalogue.Outside),
		query:      compiled,
		compiler:   p.compiler,
		store:      inmem.NewFromASTObject(p.data),
		valueCache: newPatternCache(),
		reads:      p.reads(),
		rules:      p.rules,
		ends:       p.ends(),
		revision:   cfg.Revision,
		timeout:    cfg.Timeout,
	}
	if d.timeout == 0 {
		d.timeout = DefaultTimeout
	}
	return &policy.Snapshot{
		Revision:  cfg.Revision,
		Services:  p.catalogue.Services,
		Reads:     d.reads.contract(),
		Decider:   d,
		Activated: cfg.Activated,
	}, nil
}

// decider is a policy.Decider. The query is evaluated by topdown itself: what
// rego.PreparedEvalQuery adds per evaluation (a goroutine for cancellation,
// metrics, results as Go values) is not needed here.
type decider struct {
	query      ast.Body
	compiler   *ast.Compiler
	store      storage.Store
	valueCache cache.InterQueryValueCache // compiled patterns
	reads      *reads
	rules      ruleIndex
	ends       map[ruleEnd]time.Time
	revision   policy.Revision
	timeout    time.Duration
	outside    *reach // nil where the policy does not look outside
}

var (
	resultVar  = ast.Var("decision")
	keyVerdict = ast.StringTerm("verdict")
	keyTier    = ast.StringTerm("tier")
	keyRules   = ast.StringTerm("rules")
	keyReason  = ast.StringTerm("reason")
)

// errUndefined is an evaluation without a result.
var errUndefined = errors.New("the policy gives no decision")

// Decide implements policy.Decider. Whatever goes wrong is a verdict that does
// not allow.
func (d *decider) Decide(ctx context.Context, in *policy.Input, out *policy.Decision) {
	out.Reset()
	defer func() {
		if r := recover(); r != nil {
			d.fail(out, policy.Error, fmt.Sprintf("evaluation panicked: %v", r))
		}
	}()
	evaluation := ctx
	var asks *asking
	if d.outside != nil {
		var end context.CancelFunc
		evaluation, asks, end = d.outside.begin(ctx, d.timeout)
		defer end()
	}
	err := d.decide(evaluation, in, out)
	switch {
	case errors.Is(err, errUndefined):
		d.fail(out, policy.Undefined, err.Error())
	case topdown.IsCancel(err) && ctx.Err() == nil:
		d.fail(out, policy.Error, fmt.Sprintf("no decision within %v", d.timeout))
	case err != nil:
		d.fail(out, policy.Error, err.Error())
	}
	out.Revision = d.revision
	if asks != nil {
		out.Unasked = asks.unasked
	}
}

func (d *decider) fail(out *policy.Decision, verdict policy.Verdict, reason string) {
	out.Reset()
	out.Verdict = verdict
	out.Tier = policy.Enforcement
	reason = strings.Join(strings.Fields(reason), " ") // One line.
	out.Reason = strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
	out.Revision = d.revision
}

func (d *decider) decide(ctx context.Context, in *policy.Input, out *policy.Decision) error {
	if in.Layer != policy.LayerRequest && in.Layer != policy.LayerConnection {
		return fmt.Errorf("input has no layer: %q", in.Layer)
	}
	if in.Time.IsZero() {
		return errors.New("input has no time")
	}
	value, err := d.reads.value(in)
	if err != nil {
		return err
	}
	result, err := d.evaluate(ctx, value, in.Time)
	if err != nil {
		return err
	}
	return d.read(result, in, out)
}

func (d *decider) evaluate(ctx context.Context, input ast.Value, at time.Time) (ast.Object, error) {
	txn, err := d.store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer d.store.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(d.timeout, cancel.Cancel)
	defer timer.Stop()
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, cancel.Cancel)()
	}
	var result *ast.Term
	results := 0
	err = topdown.NewQuery(d.query).
		WithCompiler(d.compiler).
		WithStore(d.store).
		WithTransaction(txn).
		WithInput(ast.NewTerm(input)).
		WithTime(at).
		WithCancel(cancel).
		WithInterQueryBuiltinValueCache(d.valueCache).
		// An error in a builtin is no answer, in any tier: as undefined it
		// would silence a deny, and satisfy a `not`.
		WithStrictBuiltinErrors(true).
		Iter(ctx, func(qr topdown.QueryResult) error {
			result = qr[resultVar]
			results++
			return nil
		})
	if err != nil {
		return nil, err
	}
	if results == 0 || result == nil {
		return nil, errUndefined
	}
	object, ok := result.Value.(ast.Object)
	if !ok || results > 1 {
		return nil, errors.New("the policy gives more than one decision, or none that can be read")
	}
	return object, nil
}

// read translates data.writ.decision. Anything but a pair of verdict and tier
// that belong together is an error.
func (d *decider) read(result ast.Object, in *policy.Input, out *policy.Decision) error {
	verdict, tier := field(result, keyVerdict), field(result, keyTier)
	switch verdict + " " + tier {
	case "deny guardrail":
		out.Verdict, out.Tier = policy.Deny, policy.Guardrail
	case "allow break-glass":
		out.Verdict, out.Tier = policy.Allow, policy.BreakGlass
	case "deny overridable-guardrail":
		out.Verdict, out.Tier = policy.Deny, policy.OverridableGuardrail
	case "deny service-deny":
		out.Verdict, out.Tier = policy.Deny, policy.ServiceDeny
	case "allow service-allow":
		out.Verdict, out.Tier = policy.Allow, policy.ServiceAllow
	case "deny default-deny":
		out.Verdict, out.Tier = policy.Deny, policy.DefaultDeny
	default:
		return fmt.Errorf("the policy gives verdict %q in tier %q", verdict, tier)
	}
	out.Reason = field(result, keyReason)
	if rules := result.Get(keyRules); rules != nil {
		if set, ok := rules.Value.(ast.Set); ok {
			for _, id := range set.Slice() {
				out.Rules = append(out.Rules, d.rules.find(out.Tier, in.Destination.Service, idText(id)))
			}
		}
	}
	if out.Tier == policy.DefaultDeny && out.Reason == "" {
		out.Reason = "no rule allows it"
		if !d.rules.hasPolicy(in.Destination.Service) {
			out.Reason = fmt.Sprintf("no policy for service %q", in.Destination.Service)
		}
	}
	if out.Verdict == policy.Allow {
		// When the first of its rules ends, it is decided again by the others.
		for _, rule := range out.Rules {
			at := d.ends[ruleEnd{out.Tier, in.Destination.Service, rule.ID}]
			if !at.IsZero() && (out.Expires.IsZero() || at.Before(out.Expires)) {
				out.Expires = at
			}
		}
	}
	return nil
}

// ruleEnd names a rule that allows for a time.
type ruleEnd struct {
	tier        policy.Tier
	service, id string
}

func (p *Program) ends() map[ruleEnd]time.Time {
	ends := map[ruleEnd]time.Time{}
	for _, b := range p.catalogue.BreakGlass {
		ends[ruleEnd{policy.BreakGlass, b.Service, b.ID}] = b.Expires
	}
	for service, list := range p.written.Services {
		for _, r := range list {
			if end := r.Ends(); !end.IsZero() {
				ends[ruleEnd{r.Tier, service, r.ID}] = end
			}
		}
	}
	return ends
}

func field(o ast.Object, key *ast.Term) string {
	if t := o.Get(key); t != nil {
		if s, ok := t.Value.(ast.String); ok {
			return string(s)
		}
	}
	return ""
}

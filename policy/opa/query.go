package opa

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"github.com/writ-dev/writ/policy"
)

const (
	maxQueryBytes = 64 << 10
	// Solutions of one query.
	maxSolutions = 10_000
)

// answer is the variable that stands for the value of a query.
var answer = ast.Var("writ_answer")

// asker evaluates queries about one input. As in a decision, an error in a
// builtin is an error, and the bounds of builtins hold.
type asker struct {
	program    *Program
	store      storage.Store
	valueCache cache.InterQueryValueCache
	input      *ast.Term
	at         time.Time
	deadline   time.Time
}

func (p *Program) ask(in *policy.Input, timeout time.Duration) (*asker, error) {
	if in.Time.IsZero() {
		return nil, errors.New("input has no time")
	}
	everything := &reads{allHeaders: true, allQuery: true, tokens: true}
	value, err := everything.value(in)
	if err != nil {
		return nil, err
	}
	return &asker{
		program:    p,
		store:      inmem.NewFromASTObject(p.data),
		valueCache: newPatternCache(),
		input:      ast.NewTerm(value),
		at:         in.Time,
		deadline:   time.Now().Add(timeout),
	}, nil
}

// solve gives each solution of a body to yield until it returns false.
func (a *asker) solve(ctx context.Context, body ast.Body, yield func(topdown.QueryResult) bool) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("evaluation panicked: %v", r)
		}
	}()
	compiled, err := a.program.compiler.QueryCompiler().Compile(body)
	if err != nil {
		return err
	}
	txn, err := a.store.NewTransaction(ctx)
	if err != nil {
		return err
	}
	defer a.store.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(time.Until(a.deadline), cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	enough := errors.New("enough")
	solutions := 0
	err = topdown.NewQuery(compiled).
		WithCompiler(a.program.compiler).
		WithStore(a.store).
		WithTransaction(txn).
		WithInput(a.input).
		WithTime(a.at).
		WithCancel(cancel).
		WithInterQueryBuiltinValueCache(a.valueCache).
		WithStrictBuiltinErrors(true).
		Iter(ctx, func(result topdown.QueryResult) error {
			if solutions++; solutions > maxSolutions {
				return fmt.Errorf("more than %d answers", maxSolutions)
			}
			if !yield(result) {
				return enough
			}
			return nil
		})
	switch {
	case errors.Is(err, enough):
		return nil
	case topdown.IsCancel(err):
		return cmp.Or(ctx.Err(), errTooLong)
	}
	return err
}

var errTooLong = errors.New("no answer in time")

// values are the answers of one term, under the conditions of a body.
func (a *asker) values(ctx context.Context, given ast.Body, term *ast.Term, with []*ast.With, limit int) ([]ast.Value, error) {
	equal := ast.Equality.Expr(ast.NewTerm(answer), term.Copy())
	equal.With = with
	equal.Location = term.Location
	var values []ast.Value
	err := a.solve(ctx, append(slices.Clone(given), equal), func(result topdown.QueryResult) bool {
		if v := result[answer]; v != nil && !slices.ContainsFunc(values, func(o ast.Value) bool { return o.Compare(v.Value) == 0 }) {
			values = append(values, v.Value)
		}
		return limit == 0 || len(values) < limit
	})
	return values, err
}

// Query evaluates one Rego term, such as data.services.orders.allow, about an
// input, and gives each value that it has as JSON's Go values; none when it is
// undefined. What may be asked is what a policy may use, data.writ included.
// A query that does not compile is a policy.Refused. timeout is DefaultTimeout
// when 0.
func (p *Program) Query(ctx context.Context, query string, in *policy.Input, timeout time.Duration) ([]any, error) {
	term, with, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	asker, err := p.ask(in, cmp.Or(timeout, DefaultTimeout))
	if err != nil {
		return nil, err
	}
	values, err := asker.values(ctx, nil, term, with, 0)
	var compile ast.Errors
	if errors.As(err, &compile) {
		return nil, policy.Refused(problemsOf(err))
	}
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", query, err)
	}
	answers := make([]any, len(values))
	for i, v := range values {
		if answers[i], err = ast.JSON(v); err != nil {
			return nil, fmt.Errorf("query %s: %w", query, err)
		}
	}
	return answers, nil
}

func parseQuery(query string) (*ast.Term, []*ast.With, error) {
	const want = "want one term such as data.services.orders.allow"
	if len(query) > maxQueryBytes {
		return nil, nil, policy.Refused{{Code: policy.ProblemLimit, Message: fmt.Sprintf("the query is longer than %d bytes", maxQueryBytes)}}
	}
	statements, _, errs := ast.NewParser().WithReader(newReader([]byte(query))).WithRegoVersion(ast.RegoV1).
		WithCapabilities(capabilities()).WithMaxRecursionDepth(maxRegoDepth).Parse()
	if len(errs) > 0 {
		return nil, nil, policy.Refused(problemsOf(errs))
	}
	if len(statements) == 1 {
		if body, ok := statements[0].(ast.Body); ok && len(body) == 1 && !body[0].Negated {
			switch terms := body[0].Terms.(type) {
			case *ast.Term:
				return terms, body[0].With, nil
			case []*ast.Term:
				return ast.CallTerm(terms...), body[0].With, nil
			}
		}
	}
	return nil, nil, policy.Refused{{Code: policy.ProblemParse, Message: fmt.Sprintf("query %q: %s", query, want)}}
}

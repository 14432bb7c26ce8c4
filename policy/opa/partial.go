package opa

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"github.com/writ-dev/writ/policy"
)

// Compiler holds the rules as the evaluator sees them. It is for reading.
func (p *Program) Compiler() *ast.Compiler { return p.compiler }

// Data is the content's data. It is for reading.
func (p *Program) Data() ast.Object { return p.data }

// Rule is how a decision names the rule with that id.
func (p *Program) Rule(tier policy.Tier, service, id string) policy.Rule {
	return p.rules.find(tier, service, id)
}

// HasPolicy reports whether anything is written for the service.
func (p *Program) HasPolicy(service string) bool { return p.rules.hasPolicy(service) }

// Reads are the headers and query parameters that the rules look at.
func (p *Program) Reads() policy.Reads { return p.reads().contract() }

// RuleID is the id of a rule that decides, as it is written; literal is false
// when it is computed, and then the id is the expression.
func RuleID(rule *ast.Rule) (id string, literal bool) {
	if id, literal = ruleID(rule); !literal {
		id = rule.Head.Key.String()
	}
	return id, literal
}

// Constants evaluates what depends on no input, with the errors that a
// decision would have. It is for one goroutine; Close ends it.
type Constants struct {
	p     *Program
	store storage.Store
	txn   storage.Transaction
	// patterns is not OPA's own cache, which takes one glob for another.
	patterns cache.InterQueryValueCache
}

// Constants prepares the evaluation of what depends on no input.
func (p *Program) Constants(ctx context.Context) (*Constants, error) {
	store := inmem.NewFromASTObject(p.data)
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("read data: %w", err)
	}
	return &Constants{p, store, txn, newPatternCache()}, nil
}

// Close ends the reading.
func (c *Constants) Close() { c.store.Abort(context.Background(), c.txn) }

// Eval gives the values of result for which body holds. The body is as the
// compiler leaves bodies, and must not mention input. Its clock stands at
// zero; what reads the clock must not be asked.
func (c *Constants) Eval(ctx context.Context, body ast.Body, result ast.Var) (values []ast.Value, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("evaluation panicked: %v", r)
		}
	}()
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(DefaultTimeout, cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	err = topdown.NewQuery(body).
		WithCompiler(c.p.compiler).
		WithStore(c.store).
		WithTransaction(c.txn).
		WithTime(time.Unix(0, 0)).
		WithCancel(cancel).
		WithInterQueryBuiltinValueCache(c.patterns).
		WithStrictBuiltinErrors(true).
		Iter(ctx, func(qr topdown.QueryResult) error {
			t := qr[result]
			if t == nil {
				return errors.New("no result")
			}
			values = append(values, t.Value)
			return nil
		})
	return values, err
}

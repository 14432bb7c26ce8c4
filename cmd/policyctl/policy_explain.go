package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyExplainCmd(a *app) *cobra.Command {
	x := explanation{app: a}
	cmd := &cobra.Command{
		Use:   "explain [SOURCE] {--input FILE | --decision ID}",
		Short: "Say why an input is decided as it is",
		Long: `Decide an input and say why: which rules decided, with their source; after a
deny, which rules would have allowed it, and otherwise of those that do not, the
nearest ones with the conditions that failed and the values that were compared.

Each condition of a rule is looked at on its own, as long as those before it
hold. A helper that failed is followed to its own conditions.

--decision explains a decision on record, by the input that the record holds and
the policy that decided: what the enforcement point did not record cannot be
shown, and is named. With --record it is read from a ledger, an archive or an
export instead of the control plane. Without SOURCE the policy is the control
plane's, that in force or the one that decided.

The values come from the input, headers among them: look before you share the
output.

` + sourceHelp,
		Example: `  policyctl policy explain policy/ --input in.json
  policyctl policy explain --decision 5m7c3gyl2rqk4tq7bq4v3w6x2e
  policyctl policy explain -f mesh.yaml policy/ --input in.json --all`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				x.source = args[0]
			}
			return x.run(cmd.Context())
		},
	}
	x.inputs.add(cmd)
	f := cmd.Flags()
	f.StringVar(&x.decision, "decision", "", "id of a decision on record, as in the response header writ-decision-id")
	f.StringVar(&x.record, "record", "", "ledger directory, archive or JSON Lines export to find the decision in")
	f.IntVar(&x.nearest, "nearest", 3, "how many rules that do not allow it to show")
	f.BoolVar(&x.all, "all", false, "show all rules that do not allow it")
	for _, name := range []string{"nearest", "decision"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	_ = cmd.MarkFlagFilename("record")
	cmd.MarkFlagsOneRequired("input", "decision")
	cmd.MarkFlagsMutuallyExclusive("input", "decision")
	cmd.MarkFlagsMutuallyExclusive("time", "decision")
	x.from.add(cmd)
	return cmd
}

// explanation is what is explained, and by which policy.
type explanation struct {
	*app
	source           string
	from             sourceFlags
	inputs           inputFlags
	decision, record string
	nearest          int
	all              bool
}

func (x *explanation) run(ctx context.Context) error {
	if x.nearest < 1 {
		return fmt.Errorf("--nearest %d: want at least 1", x.nearest)
	}
	if x.record != "" && x.decision == "" {
		return errors.New("--record is where --decision is found")
	}
	var recorded *recordedDecision
	var in *policy.Input
	number := uint64(0) // that in force
	if x.decision != "" {
		var err error
		if recorded, err = x.find(ctx); err != nil {
			return err
		}
		in, number = &recorded.Input, recorded.Decision.Revision.Number
	} else {
		list, err := x.readInputs(x.inputs)
		if err != nil {
			return err
		}
		if len(list) != 1 {
			return fmt.Errorf("%s: %d inputs: want one", x.inputs.file, len(list))
		}
		in = list[0]
	}
	program, revision, err := x.policy(ctx, number)
	if err != nil {
		return err
	}
	options := opa.ExplainOptions{Nearest: x.nearest}
	if x.all {
		options.Nearest = -1
	}
	why, err := program.Explain(ctx, in, options)
	if err != nil {
		return err
	}
	return x.explained(why, revision, recorded)
}

// policy is the one to explain by: that of SOURCE, or a revision of the
// control plane.
func (x *explanation) policy(ctx context.Context, number uint64) (*opa.Program, string, error) {
	if x.source != "" {
		program, err := x.loadPolicy(ctx, x.from, x.source)
		return program, "", err
	}
	revision, content, err := (&contents{app: x.app}).fetch(ctx, number)
	if err != nil {
		return nil, "", fmt.Errorf("policy explain: %w", err)
	}
	program, err := opa.Load(content)
	if err != nil {
		return nil, "", fmt.Errorf("revision %s: %w", revisionText(revision), err)
	}
	return program, revisionText(revision), nil
}

// recordedDecision is a decision on record.
type recordedDecision struct {
	audit.Reading
	id string
}

// find reads the decision from the record.
func (x *explanation) find(ctx context.Context) (*recordedDecision, error) {
	var stored *auditv1.StoredRecord
	filter := &auditv1.Filter{DecisionId: x.decision}
	if x.record == "" {
		err := x.query(ctx, &auditv1.QueryRequest{Filter: filter, Limit: 1}, func(s *auditv1.StoredRecord) error {
			stored = s
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("policy explain: %w", err)
		}
	} else {
		records, closeRecords, err := offlineRecords(ctx, x.record, filter)
		if err != nil {
			return nil, err
		}
		defer closeRecords()
		for s, err := range records {
			if err != nil {
				return nil, err
			}
			if s.GetDecisionId() == x.decision {
				stored = s
				break
			}
		}
	}
	if stored == nil {
		return nil, fmt.Errorf("no decision %s on record", x.decision)
	}
	r := &recordedDecision{id: x.decision}
	event := stored.GetRecord().GetEvent()
	if len(event) == 0 {
		return nil, fmt.Errorf("decision %s was erased from the record", x.decision)
	}
	if err := r.Read(event); err != nil {
		return nil, fmt.Errorf("decision %s: %w", x.decision, err)
	}
	return r, nil
}

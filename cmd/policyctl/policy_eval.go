package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

// evalTimeout bounds one decision or query on a person's machine.
const evalTimeout = 10 * time.Second

func newPolicyEvalCmd(a *app) *cobra.Command {
	var (
		inputs        inputFlags
		from          sourceFlags
		query, engine string
		allowOutside  bool
	)
	cmd := &cobra.Command{
		Use:   "eval SOURCE --input FILE",
		Short: "Decide inputs by a policy directory, without a control plane",
		Long: `Decide inputs (JSON, version 1) by a policy directory. The file holds one
input, or several one after the other, such as JSON lines. An input without a
time is decided as of now, or as of --time, which stands above the input's own.

--engine compiled decides by the compiled form, which asks topdown where it is
not sure; both decides twice and ends with exit code 1 if there is a
difference.

With --query the result is the value of a Rego term instead, data.writ
included; a term with several answers gives all of them. It is evaluated as a
decision is: the same builtins, an error is an error.

Nobody else is asked: a rule that looks outside of the input (data.writ.outside:
http.send and the like) makes the decision an error. With --allow-outside it
asks, from this machine and with its environment.

` + sourceHelp,
		Example: `  policyctl policy eval policy/ --input in.json
  policyctl policy eval -f mesh.yaml policy/ --input - < inputs.jsonl
  policyctl policy eval policy/ --input in.json --query data.services.orders.allow`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(evalEngines, engine) || query != "" && engine != engineTopdown {
				return fmt.Errorf("--engine %q: want %s; --query is answered by topdown", engine, strings.Join(evalEngines, ", "))
			}
			if allowOutside && query != "" {
				return errors.New("--allow-outside is for decisions: a --query asks nobody")
			}
			program, err := a.loadPolicy(cmd.Context(), from, args[0])
			if err != nil {
				return err
			}
			list, err := a.readInputs(inputs)
			if err != nil {
				return err
			}
			if query != "" {
				return a.evalQuery(cmd.Context(), program, query, list)
			}
			return a.evalDecisions(cmd.Context(), evaluation{dir: args[0], program: program, engine: engine, inputs: list, allowOutside: allowOutside})
		},
	}
	inputs.add(cmd)
	cmd.Flags().StringVar(&engine, "engine", engineTopdown, "what decides: topdown, compiled or both")
	_ = cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(evalEngines, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&query, "query", "", "Rego term to evaluate instead of the decision")
	_ = cmd.RegisterFlagCompletionFunc("query", cobra.FixedCompletions([]string{"data.writ.decision", "data.services.", "data.guardrails."}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
	cmd.Flags().BoolVar(&allowOutside, "allow-outside", false, "let rules look outside of the input, as far as data.writ.outside says")
	from.add(cmd)
	return cmd
}

// loadPolicy checks a policy directory and shows what is wrong with it.
func (a *app) loadPolicy(ctx context.Context, from sourceFlags, dir string) (*opa.Program, error) {
	_, program, problems, err := from.check(ctx, dir)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, a.notInOrder(dir, problems)
	}
	return program, nil
}

// inputFlags say which inputs are looked at, and as of when.
type inputFlags struct{ file, at string }

func (f *inputFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "input", "", "file with the input; - is standard input")
	cmd.Flags().StringVar(&f.at, "time", "", "time of the decision, RFC 3339; default the input's, or now")
	_ = cmd.MarkFlagFilename("input", "json", "jsonl")
	_ = cmd.RegisterFlagCompletionFunc("time", cobra.NoFileCompletions)
}

// readInputs reads one input after the other. Each has a time afterwards.
func (a *app) readInputs(f inputFlags) ([]*policy.Input, error) {
	if f.file == "" {
		return nil, errors.New("--input FILE is missing (- is standard input)")
	}
	at := time.Now().UTC()
	if f.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339Nano, f.at); err != nil {
			return nil, fmt.Errorf("--time %q: want a time such as 2030-01-31T12:00:00Z", f.at)
		}
	}
	r := a.stdin
	if f.file != "-" {
		file, err := os.Open(f.file)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		r = file
	}
	var list []*policy.Input
	for dec := json.NewDecoder(r); ; {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: input %d: %w", f.file, len(list)+1, err)
		}
		in, err := policy.DecodeInput(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: input %d: %w", f.file, len(list)+1, err)
		}
		if in.Time.IsZero() || f.at != "" {
			in.Time = at.UTC()
		}
		list = append(list, in)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no input in it", f.file)
	}
	return list, nil
}

// decisionInfo is the JSON form of a decision made here.
type decisionInfo struct {
	Verdict string     `json:"verdict"`
	Tier    string     `json:"tier"`
	Rules   []ruleInfo `json:"rules"`
	Reason  string     `json:"reason,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
	// Engine that decided, where it was asked for: topdown or compiled.
	Engine string `json:"engine,omitempty"`
}

type ruleInfo struct {
	ID   string `json:"id"`
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

func decisionInfoFrom(d *policy.Decision) decisionInfo {
	info := decisionInfo{Verdict: d.Verdict.String(), Tier: d.Tier.String(), Rules: []ruleInfo{}, Reason: d.Reason}
	for _, r := range d.Rules {
		info.Rules = append(info.Rules, ruleInfo{r.ID, r.File, r.Line})
	}
	if !d.Expires.IsZero() {
		info.Expires = &d.Expires
	}
	return info
}

func (i decisionInfo) write(w io.Writer, dir string) error {
	fmt.Fprintf(w, "%s by %s\n", i.Verdict, i.Tier)
	if i.Reason != "" {
		fmt.Fprintln(w, "reason:", terminalSafe(i.Reason))
	}
	for _, r := range i.Rules {
		at := ""
		if r.File != "" {
			at = fmt.Sprintf("  %s:%d", fileIn(dir, r.File), r.Line)
		}
		fmt.Fprintf(w, "rule: %s%s\n", terminalSafe(r.ID), terminalSafe(at))
	}
	if i.Expires != nil {
		fmt.Fprintf(w, "expires: %s\n", i.Expires.Format(time.RFC3339))
	}
	if i.Engine != "" {
		fmt.Fprintln(w, "engine:", i.Engine)
	}
	return nil
}

func (a *app) evalQuery(ctx context.Context, program *opa.Program, query string, inputs []*policy.Input) error {
	type answer struct {
		// Values is empty when the term is undefined.
		Values []any `json:"values"`
	}
	result := struct {
		Query   string   `json:"query"`
		Answers []answer `json:"answers"`
	}{Query: query}
	for _, in := range inputs {
		values, err := program.Query(ctx, query, in, evalTimeout)
		var problems policy.Refused
		if errors.As(err, &problems) {
			return fmt.Errorf("--query: %s", problems[0].Message)
		}
		if err != nil {
			return err
		}
		if values == nil {
			values = []any{}
		}
		result.Answers = append(result.Answers, answer{values})
	}
	return a.emit(result, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, answer := range result.Answers {
			if len(answer.Values) == 0 {
				fmt.Fprintln(w, "undefined")
			}
			for _, v := range answer.Values {
				if err := enc.Encode(v); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/compile"
)

// compileResult is what "policy compile" says in JSON.
type compileResult struct {
	Compiler string `json:"compiler"`
	// Engine is compiled, mixed or topdown, as a sidecar would report it.
	Engine string `json:"engine"`
	// Bytes of the encoded program.
	Bytes    int                     `json:"bytes"`
	Services []compile.ServiceReport `json:"services"`
}

func newPolicyCompileCmd(a *app) *cobra.Command {
	var from sourceFlags
	var full bool
	var services []string
	cmd := &cobra.Command{
		Use:   "compile SOURCE",
		Short: "Show which rules are compiled, and why others are not",
		Long: `Compile a policy as the control plane would, and say what became of each rule
for each service:

  compiled  decided by the program alone
  guarded   OPA is asked only where the compiled part of its conditions holds
  topdown   OPA is asked at each decision that reaches the rule's tier
  never     it cannot match for this service

Decisions are the same either way; what is compiled is faster. Rules that are
compiled, or can never match, are listed with --report only.

` + sourceHelp,
		Example: `  policyctl policy compile policy/
  policyctl policy compile -f mesh.yaml --report policy/
  policyctl policy compile --service orders -o json policy/`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.compilePolicy(cmd, &from, args[0], services, full)
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&full, "report", false, "list every rule")
	cmd.Flags().StringSliceVar(&services, "service", nil, "only this service of the catalogue; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("service", cobra.NoFileCompletions)
	return cmd
}

func (a *app) compilePolicy(cmd *cobra.Command, from *sourceFlags, source string, services []string, full bool) error {
	_, p, problems, err := from.check(cmd.Context(), source)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		err := a.emit(struct {
			Problems []policy.Problem `json:"problems"`
		}{problems}, func(w io.Writer) error { return writeProblems(w, source, problems) })
		if err != nil {
			return err
		}
		return refused(problems)
	}
	known := p.Catalogue().Services
	for _, name := range services {
		if _, ok := known[name]; !ok {
			names := make([]string, 0, len(known))
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			return fmt.Errorf("--service %q: not in the catalogue%s", name, nearmiss.Hint(name, names))
		}
	}
	program, report, err := compile.Compile(cmd.Context(), p, compile.Config{Services: services})
	if err != nil {
		return err
	}
	result := compileResult{report.Compiler, compile.EngineOf(program), len(program.Encode()), report.Services}
	return a.emit(result, func(w io.Writer) error { return result.write(w, source, full) })
}

func (r *compileResult) write(w io.Writer, source string, full bool) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range r.Services {
		n := map[string]int{}
		clauses := 0
		for _, rule := range s.Rules {
			n[rule.Result]++
			clauses += rule.Clauses
		}
		fmt.Fprintf(tw, "%s\t%d rules:\t%d compiled,\t%d guarded,\t%d topdown,\t%d never\t%d clauses\n",
			terminalSafe(s.Service), len(s.Rules), n[compile.Compiled], n[compile.Guarded], n[compile.Topdown], n[compile.Never], clauses)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, s := range r.Services {
		for _, rule := range s.Rules {
			if !full && (rule.Result == compile.Compiled || rule.Result == compile.Never) {
				continue
			}
			line := fmt.Sprintf("%s:%d: %s: %s %s: %s", fileIn(source, rule.File), rule.Line, s.Service, rule.Tier, rule.ID, rule.Result)
			if rule.Why != "" {
				line += ": " + rule.Why
			}
			if _, err := fmt.Fprintln(w, terminalSafe(line)); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "engine %s, %d bytes\n", r.Engine, r.Bytes)
	return err
}

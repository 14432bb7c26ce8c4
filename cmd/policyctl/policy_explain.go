package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyExplainCmd(a *app) *cobra.Command {
	var (
		inputs  inputFlags
		from    sourceFlags
		nearest int
		all     bool
	)
	cmd := &cobra.Command{
		Use:   "explain SOURCE --input FILE",
		Short: "Say why an input is decided as it is",
		Long: `Decide an input by a policy directory and say why: which rules decided, with
their source; after a deny, which rules would have allowed it, and of those
that do not, the nearest ones with the conditions that failed and the values
that were compared.

Each condition of a rule is looked at on its own, as long as those before it
hold. A helper that failed is followed to its own conditions.

The values come from the input, headers among them: look before you share the
output.

` + sourceHelp,
		Example: `  policyctl policy explain policy/ --input in.json
  policyctl policy explain -f mesh.yaml policy/ --input in.json --all`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if nearest < 1 {
				return fmt.Errorf("--nearest %d: want at least 1", nearest)
			}
			program, err := a.loadPolicy(cmd.Context(), from, args[0])
			if err != nil {
				return err
			}
			list, err := a.readInputs(inputs)
			if err != nil {
				return err
			}
			if len(list) != 1 {
				return fmt.Errorf("%s: %d inputs: want one", inputs.file, len(list))
			}
			options := opa.ExplainOptions{Nearest: nearest}
			if all {
				options.Nearest = -1
			}
			x, err := program.Explain(cmd.Context(), list[0], options)
			if err != nil {
				return err
			}
			return a.explained(args[0], x)
		},
	}
	inputs.add(cmd)
	cmd.Flags().IntVar(&nearest, "nearest", 3, "how many rules that do not allow it to show")
	cmd.Flags().BoolVar(&all, "all", false, "show all rules that do not allow it")
	_ = cmd.RegisterFlagCompletionFunc("nearest", cobra.NoFileCompletions)
	from.add(cmd)
	return cmd
}

// explanationInfo is the JSON form of an explanation.
type explanationInfo struct {
	decisionInfo
	Decided    []outcomeInfo `json:"decided"`
	Overruled  []outcomeInfo `json:"overruled"`
	Nearest    []outcomeInfo `json:"nearest"`
	Failed     []outcomeInfo `json:"failed"`
	Incomplete bool          `json:"incomplete"`
}

type outcomeInfo struct {
	Tier       string          `json:"tier,omitempty"`
	ID         string          `json:"id"`
	File       string          `json:"file"`
	Line       int             `json:"line"`
	Source     string          `json:"source"`
	Conditions []conditionInfo `json:"conditions,omitempty"`
	NotReached int             `json:"not_reached,omitempty"`
}

type conditionInfo struct {
	File    string        `json:"file"`
	Line    int           `json:"line"`
	Column  int           `json:"column"`
	Text    string        `json:"text"`
	Values  []valueInfo   `json:"values,omitempty"`
	Error   string        `json:"error,omitempty"`
	Because []outcomeInfo `json:"because,omitempty"`
}

type valueInfo struct {
	Text  string `json:"text"`
	Value string `json:"value"`
}

func outcomesFrom(list []opa.RuleOutcome) []outcomeInfo {
	infos := make([]outcomeInfo, 0, len(list))
	for _, o := range list {
		info := outcomeInfo{ID: o.Rule.ID, File: o.Rule.File, Line: o.Rule.Line, Source: o.Source, NotReached: o.NotReached}
		if o.Tier != 0 {
			info.Tier = o.Tier.String()
		}
		for _, c := range o.Conditions {
			condition := conditionInfo{File: c.File, Line: c.Line, Column: c.Column, Text: c.Text, Error: c.Error, Because: outcomesFrom(c.Because)}
			for _, v := range c.Values {
				condition.Values = append(condition.Values, valueInfo(v))
			}
			info.Conditions = append(info.Conditions, condition)
		}
		infos = append(infos, info)
	}
	return infos
}

func (a *app) explained(dir string, x *opa.Explanation) error {
	result := explanationInfo{
		decisionInfo: decisionInfoFrom(&x.Decision),
		Decided:      outcomesFrom(x.Decided),
		Overruled:    outcomesFrom(x.Overruled),
		Nearest:      outcomesFrom(x.Nearest),
		Failed:       outcomesFrom(x.Failed),
		Incomplete:   x.Incomplete,
	}
	return a.emit(result, func(w io.Writer) error {
		p := printer{w: w, dir: dir}
		p.line("%s by %s", result.Verdict, result.Tier)
		if result.Reason != "" {
			p.line("reason: %s", result.Reason)
		}
		for _, section := range []struct {
			title string
			list  []outcomeInfo
		}{
			{"decided by", result.Decided},
			{"ended in an error", result.Failed},
			{"would have allowed it", result.Overruled},
			{"nearest to allow it", result.Nearest},
		} {
			if len(section.list) > 0 {
				p.line("")
				p.line("%s:", section.title)
				p.outcomes(section.list, "  ")
			}
		}
		if result.Incomplete {
			p.line("")
			p.line("the time was over before every rule was looked at")
		}
		return p.err
	})
}

// printer writes lines until one fails.
type printer struct {
	w   io.Writer
	dir string
	err error
}

// at is a place that an editor can open, but in the library, which is part of
// the program.
func (p *printer) at(file string, line int) string {
	if opa.IsOwn(file) {
		return fmt.Sprintf("%s:%d", file, line)
	}
	return fmt.Sprintf("%s:%d", filepath.Join(p.dir, file), line)
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, terminalSafe(fmt.Sprintf(format, args...)))
	}
}

func (p *printer) outcomes(list []outcomeInfo, indent string) {
	for _, o := range list {
		at := ""
		if o.File != "" {
			at = p.at(o.File, o.Line) + "  "
		}
		p.line("%s%s%s", indent, at, o.ID)
		if o.Source != "" {
			p.line("%s    %s", indent, o.Source)
		}
		for _, c := range o.Conditions {
			p.condition(c, indent+"  ")
		}
		if o.NotReached > 0 {
			p.line("%s  and %d more that depend on these", indent, o.NotReached)
		}
	}
}

func (p *printer) condition(c conditionInfo, indent string) {
	p.line("%s✗ %s  %s", indent, p.at(c.File, c.Line), c.Text)
	if c.Error != "" {
		p.line("%s    error: %s", indent, c.Error)
	}
	for _, v := range c.Values {
		if strings.TrimSpace(v.Text) == c.Text && len(c.Because) > 0 {
			continue // The helper itself: its conditions follow.
		}
		p.line("%s    %s was %s", indent, v.Text, v.Value)
	}
	p.outcomes(c.Because, indent+"    ")
}

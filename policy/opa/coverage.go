package opa

import (
	"maps"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
)

// Coverage is the share of lines that tests evaluated, in percent.
type Coverage struct {
	Percent float64            `json:"percent"`
	Files   map[string]float64 `json:"files"`
	// Missing are the lines that no test evaluated, by file.
	Missing map[string][]Lines `json:"missing"`
}

// Lines are lines of a file, both included, counted from 1.
type Lines struct {
	From int `json:"from"`
	To   int `json:"to"`
}

func (p *Program) coverage(c *cover.Cover) *Coverage {
	modules := maps.Clone(p.parsed)
	maps.DeleteFunc(modules, func(path string, _ *ast.Module) bool { return IsOwn(path) })
	report := c.Report(modules)
	out := &Coverage{Files: map[string]float64{}, Missing: map[string][]Lines{}}
	covered, lines := 0, 0
	for path := range modules {
		f := report.Files[path]
		if f == nil {
			continue
		}
		out.Files[path] = f.Coverage
		covered += f.CoveredLines
		lines += f.CoveredLines + f.NotCoveredLines
		if missing := missingLines(f); len(missing) > 0 {
			out.Missing[path] = missing
		}
	}
	if lines > 0 {
		out.Percent = float64(covered) / float64(lines) * 100
	}
	return out
}

// missingLines are whole lines: of one that was evaluated in part, nothing is
// missing that could be named without its columns.
func missingLines(f *cover.FileReport) []Lines {
	var missing []Lines
	for _, r := range f.NotCovered {
		for row := r.Start.Row; row <= r.End.Row; row++ {
			last := len(missing) - 1
			switch {
			case f.IsCovered(row), last >= 0 && row <= missing[last].To:
			case last >= 0 && row == missing[last].To+1:
				missing[last].To = row
			default:
				missing = append(missing, Lines{row, row})
			}
		}
	}
	return missing
}

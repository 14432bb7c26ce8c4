package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Budget is what a measure must keep. A number is no verdict on a test run, but
// who runs the benchmark wants to see at a glance what is not as it should be.
type Budget struct {
	Measure string `json:"measure"`
	// AtLeast and AtMost bound our value: as a multiple of Peer's where Peer is
	// set, else in the measure's unit. Zero is no bound.
	AtLeast float64 `json:"at_least,omitempty"`
	AtMost  float64 `json:"at_most,omitempty"`
	Peer    string  `json:"peer,omitempty"`
	// Value is ours, Is our value or its multiple of the peer's; both are set
	// by judge. Kept is "yes", "no", or "not measured".
	Value float64 `json:"value"`
	Is    float64 `json:"is"`
	Kept  string  `json:"kept"`

	unit string
}

// judge holds rows against budgets.
func judge(budgets []Budget, rows []Row) []Budget {
	judged := slices.Clone(budgets)
	for i := range judged {
		b := &judged[i]
		b.Kept = "not measured"
		mine, ok := valueOf(rows, b.Measure, ours)
		if !ok {
			continue
		}
		b.Value, b.Is, b.unit = mine.Value, mine.Value, mine.Unit
		if b.Peer != "" {
			peer, ok := valueOf(rows, b.Measure, b.Peer)
			if !ok || peer.Value == 0 {
				continue
			}
			b.Is = mine.Value / peer.Value
		}
		b.Kept = "yes"
		if b.AtLeast > 0 && b.Is < b.AtLeast || b.AtMost > 0 && b.Is > b.AtMost {
			b.Kept = "no"
		}
	}
	return judged
}

func valueOf(rows []Row, measure, subject string) (Row, bool) {
	i := slices.IndexFunc(rows, func(r Row) bool { return r.Measure == measure && r.Subject == subject })
	if i < 0 {
		return Row{}, false
	}
	return rows[i], true
}

// budgetTable prints a line per budget, after the table of what was measured.
func budgetTable(w io.Writer, reports []Report) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, r := range reports {
		if len(r.Budgets) == 0 {
			continue
		}
		fmt.Fprintf(t, "\nbudget of %s\twrit\tis\twanted\tkept\n", r.Name)
		for _, b := range r.Budgets {
			of := " " + b.unit
			if b.Peer != "" {
				of = "× " + b.Peer
			}
			wanted := "≥ " + number(b.AtLeast) + of
			if b.AtMost > 0 {
				wanted = "≤ " + number(b.AtMost) + of
			}
			is := number(b.Is) + of
			if b.Kept == "not measured" {
				is = "–"
			}
			fmt.Fprintf(t, "%s\t%s %s\t%s\t%s\t%s\n", b.Measure, number(b.Value), b.unit, is, wanted, b.Kept)
		}
	}
	t.Flush()
}

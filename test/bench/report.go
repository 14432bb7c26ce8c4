package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// ours is the subject that peers are compared with.
const ours = "writ"

// Row is one value. Subject is writ or the name of a peer.
type Row struct {
	Measure string  `json:"measure"`
	Subject string  `json:"subject"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
}

// Report is what one suite found.
type Report struct {
	Name    string `json:"-"`
	Machine string `json:"machine"`
	Commit  string `json:"commit"`
	Rows    []Row  `json:"rows"`
	// Budgets that the suite has, and whether they were kept.
	Budgets []Budget `json:"budgets,omitempty"`
}

func (r *Report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Name+".json"), append(data, '\n'), 0o644)
}

// samples collects the values of all rounds, in the order in which measures
// were first seen.
type samples struct {
	keys   []Row // without Value
	values map[Row][]float64
}

func (s *samples) add(measure, subject, unit string, value float64) {
	key := Row{Measure: measure, Subject: subject, Unit: unit}
	if s.values == nil {
		s.values = map[Row][]float64{}
	}
	if s.values[key] == nil {
		s.keys = append(s.keys, key)
	}
	s.values[key] = append(s.values[key], value)
}

func (s *samples) merge(o *samples) {
	for _, k := range o.keys {
		for _, v := range o.values[k] {
			s.add(k.Measure, k.Subject, k.Unit, v)
		}
	}
}

// rows gives the medians, those of one measure together and ours first.
func (s *samples) rows() []Row {
	var measures []string
	for _, k := range s.keys {
		if !slices.Contains(measures, k.Measure) {
			measures = append(measures, k.Measure)
		}
	}
	var rows []Row
	for _, m := range measures {
		for _, mine := range []bool{true, false} {
			for _, k := range s.keys {
				if k.Measure == m && (k.Subject == ours) == mine {
					k.Value = median(s.values[Row{Measure: k.Measure, Subject: k.Subject, Unit: k.Unit}])
					rows = append(rows, k)
				}
			}
		}
	}
	return rows
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// percentile of sorted values, by the nearest rank.
func percentile[T any](sorted []T, p float64) T {
	rank := int(math.Ceil(p * float64(len(sorted)) / 100))
	return sorted[max(rank-1, 0)]
}

// table prints a line per value; a peer's line says how many times its value
// ours is, or which part of it.
func table(w io.Writer, reports []Report) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "suite\tmeasure\tsubject\tvalue\tunit\twrit is")
	for _, r := range reports {
		mine := map[string]float64{}
		for _, row := range r.Rows {
			if row.Subject == ours {
				mine[row.Measure] = row.Value
			}
		}
		last := ""
		for _, row := range r.Rows {
			ratio := ""
			if own, ok := mine[row.Measure]; ok && row.Subject != ours && row.Value != 0 {
				ratio = fmt.Sprintf("%.2f×", own/row.Value)
				if own > 0 && own/row.Value < 0.1 {
					ratio = fmt.Sprintf("1/%.0f", row.Value/own)
				}
			}
			name, measure := r.Name, row.Measure
			if measure == last {
				name, measure = "", ""
			}
			last = row.Measure
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", name, measure, row.Subject, number(row.Value), row.Unit, ratio)
		}
	}
	t.Flush()
}

// number prints three significant digits, or the integer when it has more.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) || math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// describe says on which machine this runs, and what.
func describe(ctx context.Context) (machine, commit string, err error) {
	cpu := "unknown CPU"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpu = field(data, "model name", cpu)
	}
	memory := "unknown memory"
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		if kb, err := strconv.Atoi(strings.TrimSuffix(field(data, "MemTotal", ""), " kB")); err == nil {
			memory = fmt.Sprintf("%.0f GB", float64(kb)*1024/1e9)
		}
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", "", err
	}
	machine = fmt.Sprintf("%d cores %s, %s, Linux %s, %s", runtime.NumCPU(), cpu, memory, bytes.TrimSpace(kernel), runtime.Version())
	head, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "", "", fmt.Errorf("git describe: %w", err)
	}
	return machine, strings.TrimSpace(string(head)), nil
}

func field(data []byte, name, otherwise string) string {
	for scan := bufio.NewScanner(bytes.NewReader(data)); scan.Scan(); {
		if key, value, ok := strings.Cut(scan.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return otherwise
}

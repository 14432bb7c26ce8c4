package main

import (
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/writ-dev/writ/internal/atomicfile"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

// The JUnit XML that CI servers read, as far as they agree on it: suites, cases
// with name, classname, file and time, and failure, skipped or system-out.
type (
	junitSuites struct {
		XMLName  xml.Name      `xml:"testsuites"`
		Tests    int           `xml:"tests,attr"`
		Failures int           `xml:"failures,attr"`
		Skipped  int           `xml:"skipped,attr"`
		Time     string        `xml:"time,attr"`
		Suites   []*junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`

		micros int64
	}
	junitCase struct {
		Name      string        `xml:"name,attr"`
		ClassName string        `xml:"classname,attr"`
		File      string        `xml:"file,attr,omitempty"`
		Line      int           `xml:"line,attr,omitempty"`
		Time      string        `xml:"time,attr"`
		Failure   *junitFailure `xml:"failure"`
		Skipped   *struct{}     `xml:"skipped"`
		Output    string        `xml:"system-out,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// writeJUnit writes test results, one suite for each package. What keeps the
// tests from being run is a failed case of the suite "check".
func writeJUnit(file, dir string, problems []policy.Problem, report *opa.TestReport) error {
	out := &junitSuites{Tests: len(problems) + len(report.Cases), Failures: len(problems) + report.Failed, Skipped: report.Skipped}
	if len(problems) > 0 {
		check := &junitSuite{Name: "check", Tests: len(problems), Failures: len(problems)}
		for _, p := range problems {
			check.Cases = append(check.Cases, junitCase{
				Name: p.String(), ClassName: "check", File: fileIn(dir, p.File), Line: p.Line, Time: seconds(0),
				Failure: &junitFailure{p.Code, p.Message},
			})
		}
		out.Suites = append(out.Suites, check)
	}
	suites := map[string]*junitSuite{}
	for _, c := range report.Cases {
		s := suites[c.Package]
		if s == nil {
			s = &junitSuite{Name: c.Package}
			suites[c.Package] = s
			out.Suites = append(out.Suites, s)
		}
		s.add(c, dir)
	}
	var micros int64
	for _, s := range out.Suites {
		s.Time = seconds(s.micros)
		micros += s.micros
	}
	out.Time = seconds(micros)
	text, err := xml.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(file, []byte(xml.Header+string(text)+"\n"), 0o644)
}

func (s *junitSuite) add(c opa.TestCase, dir string) {
	jc := junitCase{Name: c.Name, ClassName: c.Package, File: fileIn(dir, c.File), Line: c.Line, Time: seconds(c.DurationUS), Output: c.Output}
	s.Tests++
	s.micros += c.DurationUS
	switch c.Outcome {
	case opa.Skipped:
		s.Skipped++
		jc.Skipped = &struct{}{}
	case opa.Failed:
		s.Failures++
		var text strings.Builder
		if at := c.FailedAt; at != nil {
			fmt.Fprintf(&text, "%s:%d: %s\n", fileIn(dir, at.File), at.Line, at.Text)
			for _, v := range at.Values {
				fmt.Fprintf(&text, "  %s was %s\n", v.Text, v.Value)
			}
		}
		jc.Failure = &junitFailure{failureText(c), text.String()}
	}
	s.Cases = append(s.Cases, jc)
}

func seconds(micros int64) string { return fmt.Sprintf("%.6f", float64(micros)/1e6) }

package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// lineWriter hands on what is written, line by line.
type lineWriter struct {
	mu    sync.Mutex
	rest  []byte
	lines chan<- string
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.lines <- string(line)
		w.rest = rest
	}
}

// TestPolicyTestWatch changes the policy twice and sees the tests run again.
func TestPolicyTestWatch(t *testing.T) {
	dir := policyDir(t, "GET")
	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan string, 1000)
	a := &app{stdin: strings.NewReader(""), stdout: &lineWriter{lines: lines}, stderr: &lineWriter{lines: lines}}
	ended := make(chan int, 1)
	go func() { ended <- execute(ctx, newRootCmd(a), []string{"policy", "test", "--watch", dir}) }()
	// A change may be seen in two steps, so other results may come before.
	await := func(want string) {
		t.Helper()
		for {
			select {
			case line := <-lines:
				if strings.Contains(line, want) {
					return
				}
			case code := <-ended:
				t.Fatalf("ended with %d before %q", code, want)
			}
		}
	}
	await("1 passed, 0 failed")
	await("waiting for changes")
	rules := filepath.Join(dir, "orders.rego")
	writeTestFile(t, rules, "package services.orders\n\nallow contains \"method\" if input.request.method == \"PUT\"\n")
	await("0 passed, 1 failed")
	writeTestFile(t, rules, "package services.orders\n\nallow contains")
	await("orders.rego:3")
	writeTestFile(t, rules, "package services.orders\n\nallow contains \"method\" if input.request.method == \"GET\"\n")
	await("1 passed, 0 failed")
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("interrupted with code %d", code)
	}
}

func TestPolicyTestJUnit(t *testing.T) {
	dir := policyDir(t, "GET")
	writeTestFile(t, filepath.Join(dir, "more_test.rego"), "package more_test\n\ntest_no if {\n\tprint(\"<here> \\u0001\")\n\tx := 1\n\tx == 2\n}\n\ntodo_test_later if true\n")
	file := filepath.Join(t.TempDir(), "report.xml")
	read := func() (got junitSuites) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal(data, &got); err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		return got
	}
	if code, stdout, stderr := policyCommand(t, "", "policy", "test", "--junit", file, dir); code != 2 {
		t.Fatalf("code %d\n%s%s", code, stdout, stderr)
	}
	more, orders := filepath.Join(dir, "more_test.rego"), filepath.Join(dir, "orders_test.rego")
	want := junitSuites{Tests: 3, Failures: 1, Skipped: 1, Suites: []*junitSuite{
		{Name: "more_test", Tests: 2, Failures: 1, Skipped: 1, Cases: []junitCase{
			{Name: "test_no", ClassName: "more_test", File: more, Line: 3, Output: "<here> \uFFFD\n",
				Failure: &junitFailure{"test_no failed", more + ":6: x == 2\n  x was 1\n"}},
			{Name: "todo_test_later", ClassName: "more_test", File: more, Line: 9, Skipped: &struct{}{}},
		}},
		{Name: "orders_test", Tests: 1, Cases: []junitCase{{Name: "test_method", ClassName: "orders_test", File: orders, Line: 3}}},
	}}
	ignore := []cmp.Option{cmpopts.IgnoreFields(junitSuites{}, "XMLName", "Time"), cmpopts.IgnoreFields(junitSuite{}, "Time"),
		cmpopts.IgnoreFields(junitCase{}, "Time"), cmpopts.IgnoreUnexported(junitSuite{})}
	if diff := cmp.Diff(want, read(), ignore...); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}

	writeTestFile(t, filepath.Join(dir, "orders.rego"), "package services.orders\n\nallow if input.reqest\n")
	policyCommand(t, "", "policy", "test", "--junit", file, dir)
	got := read()
	if got.Failures != 1 || len(got.Suites) != 1 || got.Suites[0].Name != "check" || got.Suites[0].Cases[0].Line != 3 {
		t.Errorf("report of a policy that does not compile: %+v", got)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/writ-dev/writ/policy/lint"
)

// Bounds of a run of regal.
const (
	regalTimeout = time.Minute
	maxRegal     = 16 << 20 // bytes of output
)

// regalOff are rules of regal that speak against policies of ours: the entry
// point is the root rule, which is not in the directory, and neither is what
// it defines; a file may be called what it likes.
var regalOff = []string{"no-defined-entrypoint", "unresolved-reference", "directory-package-mismatch"}

// runRegal runs regal on a directory, in which it finds its own configuration.
// Without regal there are no findings.
func runRegal(ctx context.Context, dir string) ([]lint.Finding, error) {
	program, err := exec.LookPath("regal")
	if err != nil {
		return nil, nil
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, regalTimeout)
	defer cancel()
	args := []string{"lint", "--format", "json"}
	for _, rule := range regalOff {
		args = append(args, "--disable", rule)
	}
	cmd := exec.CommandContext(ctx, program, append(args, ".")...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	stdout, stderr := &boundedBuffer{max: maxRegal}, &boundedBuffer{max: 4 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("regal: %w", ctx.Err())
	case err != nil && !errors.As(err, &exit):
		return nil, fmt.Errorf("regal: %w", err)
	case stdout.full:
		return nil, fmt.Errorf("regal: more than %d bytes of output", maxRegal)
	}
	// Its exit code says whether there are findings; that it failed is to be
	// told by its output alone.
	findings, parseErr := parseRegal(stdout.Bytes())
	if parseErr != nil {
		return nil, errors.Join(fmt.Errorf("regal: %w", parseErr), err, errorText(stderr.String()))
	}
	return findings, nil
}

func errorText(text string) error {
	if text = strings.TrimSpace(text); text == "" {
		return nil
	}
	return errors.New(text)
}

// parseRegal reads `regal lint --format json`. Everything it finds is a
// warning here, whatever its level there: whether regal is installed does not
// change whether a policy passes.
func parseRegal(output []byte) ([]lint.Finding, error) {
	var report struct {
		Violations []struct {
			Title       string `json:"title"`
			Description string `json:"description"`
			Location    struct {
				File string `json:"file"`
				Row  int    `json:"row"`
				Col  int    `json:"col"`
			} `json:"location"`
		} `json:"violations"`
	}
	if err := json.Unmarshal(output, &report); err != nil {
		return nil, fmt.Errorf("its report is not the JSON that was asked for: %w", err)
	}
	var findings []lint.Finding
	for _, v := range report.Violations {
		file := v.Location.File
		if file != "" {
			file = path.Clean(filepath.ToSlash(file))
		}
		findings = append(findings, lint.Finding{
			File: file, Line: v.Location.Row, Column: v.Location.Col,
			Rule: "regal/" + v.Title, Severity: lint.Warning, Message: v.Description,
		})
	}
	return findings, nil
}

// boundedBuffer keeps the first bytes and drops the rest.
type boundedBuffer struct {
	bytes.Buffer
	max  int
	full bool
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := b.max - b.Len(); len(p) > room {
		b.full = true
		b.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

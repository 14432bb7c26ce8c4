package main

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-dev/writ/policy/bundle/fetch"
)

// openPolicySource prepares pulling policy, where that is configured.
func (w *writd) openPolicySource() error {
	from := w.cfg.PolicySource
	if from == nil {
		return nil
	}
	poller, err := fetch.NewPoller(fetch.PollConfig{
		URL: from.URL, HTTP: fetch.HTTP{TokenFile: from.TokenFile, CAFile: from.CAFile},
		MinInterval: from.MinInterval, MaxInterval: from.MaxInterval, LongPoll: from.LongPoll, Log: w.log,
		Take: func(ctx context.Context, data []byte) error {
			name := fetch.Name(from.URL)
			return w.decision.Pull(actingAs(ctx, "source:"+name), name, data)
		},
	})
	if err != nil {
		return fmt.Errorf("policy_source: %w", err)
	}
	w.poller = poller
	return nil
}

// policySourceProblems are what keeps the policy source from being followed.
func (w *writd) policySourceProblems() []string {
	if w.poller == nil {
		return nil
	}
	var list []string
	s := w.poller.Status()
	if s.Failing != "" {
		since := "never"
		if !s.Contact.IsZero() {
			since = s.Contact.UTC().Format(time.RFC3339)
		}
		list = append(list, fmt.Sprintf("policy source %s does not answer as it should: %s (last answer: %s)", s.URL, s.Failing, since))
	}
	if s.Refused != "" {
		list = append(list, fmt.Sprintf("policy source %s: its bundle was refused, what is in force stays: %s", s.URL, s.Refused))
	}
	return list
}

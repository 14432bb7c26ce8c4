package main

import (
	"errors"
	"fmt"

	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/proxy"
)

// publishers are whom this sidecar trusts in place of the control plane, nil
// when it trusts that.
func (s *sidecar) publishers() (set *owners.Set, optional []string, err error) {
	if s.cfg.Policy.Trust != proxy.TrustPublisher {
		return nil, nil, nil
	}
	list := grants(&s.cfg)
	for i, p := range s.cfg.Policy.Publishers {
		if list[i].Keys, err = bundle.LoadKeys(p.Keys...); err != nil {
			return nil, nil, fmt.Errorf("policy.publishers: key of publisher %q: %w", p.Name, err)
		}
		if p.Optional {
			optional = append(optional, p.Name)
		}
	}
	set, err = owners.New(list, nil)
	return set, optional, err
}

// grants are the publishers of the configuration without their keys.
func grants(cfg *proxy.Config) []owners.Publisher {
	list := make([]owners.Publisher, len(cfg.Policy.Publishers))
	for i, p := range cfg.Policy.Publishers {
		list[i] = owners.Publisher{Name: p.Name, Packages: p.Packages, Data: p.Data, Rules: p.Rules}
	}
	return list
}

// checkPolicy finds grants that cannot be or that overlap, and key files that
// cannot be read, which serving reads again.
func checkPolicy(cfg *proxy.Config, at daemon.At) error {
	in := func(key, format string, args ...any) error { return at("policy."+key, format, args...) }
	var errs []error
	load := func(key string, files []string) bundle.Keys {
		for i, file := range files {
			if _, err := bundle.LoadKeys(file); err != nil {
				errs = append(errs, in(fmt.Sprintf("%s[%d]", key, i), "%v", err))
			}
		}
		keys, _ := bundle.LoadKeys(files...)
		return keys
	}
	load("keys", cfg.Policy.Keys)
	list := grants(cfg)
	for i, p := range cfg.Policy.Publishers {
		list[i].Keys = load(fmt.Sprintf("publishers[%d].keys", i), p.Keys)
	}
	_, err := owners.New(list, in)
	return errors.Join(append(errs, err)...)
}

package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/tracing/otlp"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/fetch"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/server"
)

// decisionKey is the name of the key that signs slices. It is never one of the
// CA's.
const decisionKey = "decision"

func (w *writd) openDecision(ctx context.Context) error {
	if err := w.holdDecision(ctx); err != nil {
		return err
	}
	key, err := keys.Ensure(w.keys, decisionKey, keys.P256)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("decision key: %w", err)
	}
	if err := w.publish("decision.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})); err != nil {
		return err
	}
	publishers, err := publishers(&w.cfg, unplaced)
	if err != nil {
		return err
	}
	approvers, err := approvers(&w.cfg, unplaced)
	if err != nil {
		return err
	}
	w.decision, err = server.New(ctx, server.Config{
		DB: w.db, DecisionKey: key, Publishers: publishers, AllowUnsigned: w.cfg.AllowUnsignedPolicy,
		Approvers: approvers, Approvals: w.cfg.Approvals,
		Emit: w.emit, Actor: knownActor, PeerID: peerID, Log: w.log, Clock: time.Now,
	})
	if err != nil {
		return err
	}
	for _, act := range w.decision.StandingAlarms() {
		w.alarms.raise(act)
	}
	return nil
}

// publishers reads who may push what.
func publishers(cfg *writdconf.Config, at daemon.At) (*owners.Set, error) {
	if len(cfg.Publishers) == 0 {
		keys, err := loadKeys("publisher_keys", cfg.PublisherKeys, at)
		return owners.One(owners.Default, keys), err
	}
	list := grants(cfg)
	var errs []error
	for i, p := range cfg.Publishers {
		var err error
		list[i].Keys, err = loadKeys(fmt.Sprintf("publishers[%d].keys", i), p.Keys, at)
		errs = append(errs, err)
	}
	set, err := owners.New(list, owners.At(at))
	return set, errors.Join(append(errs, err)...)
}

// approvers reads who may approve. A key tells who signed, so that it is one
// person's.
func approvers(cfg *writdconf.Config, at daemon.At) ([]server.Approver, error) {
	var list []server.Approver
	var errs []error
	owner := map[string]string{}
	for i, a := range cfg.Approvers {
		key := fmt.Sprintf("approvers[%d].keys", i)
		keys, err := loadKeys(key, a.Keys, at)
		errs = append(errs, err)
		for id := range keys {
			if other, taken := owner[id]; taken {
				errs = append(errs, at(key, "key %s is of approver %q and of %q: a key tells who signed", id, other, a.Name))
			}
			owner[id] = a.Name
		}
		list = append(list, server.Approver{Name: a.Name, Keys: keys})
	}
	return list, errors.Join(errs...)
}

// loadKeys reads the files that the list at key names.
func loadKeys(key string, files []string, at daemon.At) (bundle.Keys, error) {
	var errs []error
	for i, file := range files {
		if _, err := bundle.LoadKeys(file); err != nil {
			errs = append(errs, at(fmt.Sprintf("%s[%d]", key, i), "%v", err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return bundle.LoadKeys(files...)
}

// grants are the publishers of the configuration without their keys.
func grants(cfg *writdconf.Config) []owners.Publisher {
	list := make([]owners.Publisher, len(cfg.Publishers))
	for i, p := range cfg.Publishers {
		list[i] = owners.Publisher{Name: p.Name, Packages: p.Packages, Data: p.Data, Rules: p.Rules}
	}
	return list
}

// validate finds what cannot work before anything is opened. It reads the files
// that others have given, which serving reads again, and none of the data
// directory.
func validate(cfg *writdconf.Config, at daemon.At) error {
	if cfg.AdminPolicy != "" {
		if _, err := openAdminPolicy(cfg.AdminPolicy, nil); err != nil {
			return errors.Join(cfg.Validate(at), at("admin_policy", "%v", err))
		}
	}
	if err := errors.Join(validateCerts(cfg, at), validateIssuer(cfg, at)); err != nil {
		return errors.Join(cfg.Validate(at), err)
	}
	if err := otlp.Check(cfg.Tracing, os.Getenv, at); err != nil {
		return errors.Join(cfg.Validate(at), err)
	}
	if !cfg.Runs("decision") {
		_, err := owners.New(grants(cfg), owners.At(at))
		return errors.Join(cfg.Validate(at), err)
	}
	_, noPublishers := publishers(cfg, at)
	_, noApprovers := approvers(cfg, at)
	errs := []error{cfg.Validate(at), noPublishers, noApprovers}
	if from := cfg.PolicySource; from != nil {
		if err := (fetch.HTTP{CAFile: from.CAFile}).Check(); err != nil {
			errs = append(errs, at("policy_source.ca_file", "%v", err))
		}
		if err := (fetch.HTTP{TokenFile: from.TokenFile}).Check(); err != nil {
			errs = append(errs, at("policy_source.token_file", "%v", err))
		}
	}
	return errors.Join(errs...)
}

// unplaced is the place of an error in a configuration that is not at hand any
// more.
func unplaced(key, format string, args ...any) error {
	return fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
}

// actorKey is the key of who acts where nobody calls.
type actorKey struct{}

// actingAs is a context for what this control plane does by itself.
func actingAs(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, actorKey{}, name)
}

// knownActor names a caller whom the interceptors have let in.
func knownActor(ctx context.Context) string {
	if name, ok := ctx.Value(actorKey{}).(string); ok {
		return name
	}
	name, err := actor(ctx)
	if err != nil {
		return "unknown"
	}
	return name
}

package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/internal/daemon"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/server"
)

// decisionKey is the name of the key that signs slices. It is never one of the
// CA's.
const decisionKey = "decision"

func (w *writd) openDecision(ctx context.Context) error {
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
	publishers, err := publishers(w.cfg)
	if err != nil {
		return err
	}
	approvers, err := approvers(w.cfg)
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
func publishers(cfg writdconf.Config) (*owners.Set, error) {
	if len(cfg.Publishers) == 0 {
		keys, err := bundle.LoadKeys(cfg.PublisherKeys...)
		if err != nil {
			return nil, fmt.Errorf("publisher key: %w", err)
		}
		return owners.One(owners.Default, keys), nil
	}
	list := grants(&cfg)
	for i, p := range cfg.Publishers {
		var err error
		if list[i].Keys, err = bundle.LoadKeys(p.Keys...); err != nil {
			return nil, fmt.Errorf("key of publisher %q: %w", p.Name, err)
		}
	}
	return owners.New(list, nil)
}

// approvers reads who may approve. A key tells who signed, so that it is one
// person's.
func approvers(cfg writdconf.Config) ([]server.Approver, error) {
	var list []server.Approver
	owner := map[string]string{}
	for _, a := range cfg.Approvers {
		keys, err := bundle.LoadKeys(a.Keys...)
		if err != nil {
			return nil, fmt.Errorf("key of approver %q: %w", a.Name, err)
		}
		for id := range keys {
			if other, taken := owner[id]; taken {
				return nil, fmt.Errorf("key %s is of approver %q and of %q: a key tells who signed", id, other, a.Name)
			}
			owner[id] = a.Name
		}
		list = append(list, server.Approver{Name: a.Name, Keys: keys})
	}
	return list, nil
}

// grants are the publishers of the configuration without their keys.
func grants(cfg *writdconf.Config) []owners.Publisher {
	list := make([]owners.Publisher, len(cfg.Publishers))
	for i, p := range cfg.Publishers {
		list[i] = owners.Publisher{Name: p.Name, Packages: p.Packages, Data: p.Data, Rules: p.Rules}
	}
	return list
}

// validate finds what cannot work before anything is opened.
func validate(cfg *writdconf.Config, at daemon.At) error {
	_, err := owners.New(grants(cfg), owners.At(at))
	return errors.Join(cfg.Validate(at), err)
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

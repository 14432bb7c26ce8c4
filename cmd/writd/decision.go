package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/policy/bundle"
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
	publishers, err := bundle.LoadKeys(w.cfg.PublisherKeys...)
	if err != nil {
		return fmt.Errorf("publisher key: %w", err)
	}
	w.decision, err = server.New(ctx, server.Config{
		DB: w.db, DecisionKey: key, PublisherKeys: publishers, AllowUnsigned: w.cfg.AllowUnsignedPolicy,
		Emit: w.emit, Actor: knownActor, PeerID: peerID, Log: w.log, Clock: time.Now,
	})
	return err
}

// knownActor names a caller whom the interceptors have let in.
func knownActor(ctx context.Context) string {
	name, err := actor(ctx)
	if err != nil {
		return "unknown"
	}
	return name
}

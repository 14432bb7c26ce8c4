package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
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
	publishers, err := publisherKeys(w.cfg.PublisherKeys)
	if err != nil {
		return err
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

func publisherKeys(files []string) (bundle.Keys, error) {
	var public []*ecdsa.PublicKey
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return bundle.Keys{}, fmt.Errorf("publisher key: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return bundle.Keys{}, fmt.Errorf("publisher key %s: no PEM block", file)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return bundle.Keys{}, fmt.Errorf("publisher key %s: %w", file, err)
		}
		ec, ok := parsed.(*ecdsa.PublicKey)
		if !ok {
			return bundle.Keys{}, fmt.Errorf("publisher key %s: %T, want ECDSA P-256", file, parsed)
		}
		public = append(public, ec)
	}
	return bundle.NewKeys(public...)
}

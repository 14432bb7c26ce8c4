package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/collect"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/identity"
)

// spoolBytes is the size of the spool of a control plane that sends its events
// to another.
const spoolBytes = 64 << 20

// record is where events go: the ledger where the audit role runs, otherwise a
// spool on the way to another control plane's.
type record struct {
	recorder audit.Recorder
	emit     identity.Emit
	emitAll  identity.EmitAll
	ledger   *ledger.Ledger
	ingest   *collect.Server
	spool    *spool.Spool
	w        *writd
}

func (w *writd) openRecord() (*record, error) {
	r := &record{w: w}
	var err error
	if w.cfg.Runs("audit") {
		err = r.openLedger()
	} else {
		err = r.openSpool()
	}
	if err != nil {
		return nil, err
	}
	r.emit, r.emitAll = audit.Emitter(r.recorder, nil), audit.EmitterAll(r.recorder, nil)
	return r, nil
}

func (r *record) openLedger() error {
	w := r.w
	signer, vkey, err := ledger.LoadSigner(w.td, w.path("keys", "audit.key"))
	if err != nil {
		return err
	}
	if err := w.publish("audit.vkey", []byte(vkey+"\n")); err != nil {
		return err
	}
	r.ledger, err = ledger.Open(ledger.Config{
		Dir: w.path("audit"), MaxBytes: w.cfg.AuditMaxBytes, TrustDomain: w.td, Self: identity.ServerID(w.td),
		Signer: signer, VerifierKey: vkey, Log: w.log,
	})
	if err != nil {
		return err
	}
	r.recorder = r.ledger.Recorder()
	return nil
}

func (r *record) openSpool() (err error) {
	r.spool, err = spool.Open(spool.Config{
		Dir: r.w.path("spool"), MaxBytes: spoolBytes, OnFull: spool.Deny, Stream: identity.ServerID(r.w.td), Log: r.w.log,
	})
	if err != nil {
		return err
	}
	r.recorder = r.spool
	return nil
}

func (r *record) registerIngest(s grpc.ServiceRegistrar, peerID func(context.Context) (spiffeid.ID, error)) {
	if r.ledger == nil {
		return
	}
	r.ingest = collect.NewServer(collect.ServerConfig{Store: r.ledger, PeerID: peerID, Stored: r.w.sample(), Log: r.w.log})
	auditv1.RegisterIngestServer(s, r.ingest)
}

func (r *record) registerAdmin(s grpc.ServiceRegistrar, actor func(context.Context) (string, error)) {
	if r.ledger != nil {
		auditv1.RegisterAdminServer(s, ledger.NewAdmin(ledger.AdminConfig{Ledger: r.ledger, Recorder: r.recorder, Actor: actor, Log: r.w.log}))
	}
}

// endIngest ends the streams of recorders once what they sent is durable.
func (r *record) endIngest() {
	if r.ingest != nil {
		r.ingest.Close()
	}
}

// run ships what the spool holds, where there is one.
func (r *record) run(ctx context.Context) error {
	if r.spool == nil {
		<-ctx.Done()
		return nil
	}
	config := tlsconfig.MTLSClientConfig(r.w.source, r.w.source, tlsconfig.AuthorizeID(identity.ServerID(r.w.td)))
	config.MinVersion = tls.VersionTLS13
	conn, err := grpc.NewClient(r.w.cfg.Collector, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return fmt.Errorf("collector %s: %w", r.w.cfg.Collector, err)
	}
	defer conn.Close()
	if err := collect.Ship(ctx, collect.Config{Conn: conn, Spool: r.spool, Log: r.w.log}); err != nil {
		r.w.log.Warn("the record is kept here until the collector has it", "dir", filepath.Base(r.w.path("spool")), "error", err)
	}
	return nil
}

// err is why nothing goes on record, nil when it does, and turned is closed when
// that may have become another.
func (r *record) err() (turned <-chan struct{}, err error) {
	switch {
	case r.ledger != nil:
		turned, err = r.ledger.Err()
	case r.spool != nil:
		turned, err = r.spool.Err()
	}
	if err != nil {
		err = fmt.Errorf("nothing goes on record, so nothing is issued: %w", err)
	}
	return turned, err
}

// status of the ledger, nil without the audit role.
func (r *record) status() *auditv1.AuditStatusResponse {
	if r.ledger == nil {
		return nil
	}
	return r.ledger.Status()
}

func (r *record) close() error {
	var errs []error
	if r.ledger != nil {
		errs = append(errs, r.ledger.Close())
	}
	if r.spool != nil {
		errs = append(errs, r.spool.Close())
	}
	return errors.Join(errs...)
}

// ledgerAge says how old the last signed head is.
func ledgerAge(s *auditv1.AuditStatusResponse, now time.Time) time.Duration {
	if s == nil || s.LastHead == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, s.LastHead))
}

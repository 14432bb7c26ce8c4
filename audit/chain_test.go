package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"crypto"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity"
)

var stream = Stream{SPIFFEID: "spiffe://example.org/svc/web", Instance: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}

// The chain is written out here once more, from its definition.
func TestChain(t *testing.T) {
	sized := func(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }
	start := sha256.Sum256([]byte("writ audit chain start v1\x00" + sized(stream.SPIFFEID) + sized(stream.Instance) + "\x00\x00\x00\x02"))
	salt := [SaltSize]byte{1, 2}
	salted := sha256.Sum256([]byte("writ audit record v1\x00" + string(salt[:]) + "event"))
	next := sha256.Sum256([]byte("writ audit chain v1\x00" + string(start[:]) + string(salted[:])))

	b := Batch{Stream: stream, Epoch: 2, First: 1, Records: []*auditv1.Record{{Event: []byte("event"), Salt: salt[:]}}}
	if err := b.Hash(stream.Start(2).Chain); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Batch{Stream: stream, Epoch: 2, First: 1, Records: b.Records, Hashes: []Hash{salted}, Prev: start, Last: next}, b, protocmp.Transform()); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	b.Records[0].Salt = nil
	if err := b.Hash(start); err == nil {
		t.Error("no error without a salt")
	}
}

// Decision ids are a contract: they are printed into logs and tickets.
func TestDecisionID(t *testing.T) {
	ids := NewDecisionIDs(stream, 1)
	seen := map[string]bool{}
	for i := range uint64(10000) {
		id := ids.At(i)
		if len(id) != decisionIDSize || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" || seen[id] {
			t.Fatalf("id %q of %d", id, i)
		}
		seen[id] = true
	}
	other := NewDecisionIDs(stream, 2)
	if seen[other.At(1)] {
		t.Error("epochs share ids")
	}
	if got, want := ids.At(1), "7v5gbtrsggbspo7v3tixxrolyq"; got != want {
		t.Errorf("id %s, want %s", got, want)
	}
	if n := testing.AllocsPerRun(10, func() { ids.Append(make([]byte, 0, 64), 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNewStream(t *testing.T) {
	for _, bad := range [][2]string{{"http://x/y", stream.Instance}, {stream.SPIFFEID, "x"}, {stream.SPIFFEID, strings.ToUpper(stream.Instance)}, {stream.SPIFFEID, "{" + stream.Instance + "}"}} {
		if _, err := NewStream(bad[0], bad[1]); err == nil {
			t.Errorf("NewStream(%q): no error", bad)
		}
	}
	if got, err := NewStream(stream.SPIFFEID, stream.Instance); err != nil || got != stream {
		t.Errorf("%v, %v", got, err)
	}
}

func leaf(t *testing.T, key crypto.Signer, id string) *x509.Certificate {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{u}}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestGap(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{ec, ed, rs} {
		g := &auditv1.Gap{Count: 5, Cause: GapDrop}
		if err := CheckGap(stream, 1, 9, g); !errors.Is(err, ErrGapUnsigned) {
			t.Errorf("unsigned: %v", err)
		}
		g.Signature, g.Certificates, err = SignGapWith(key, []*x509.Certificate{leaf(t, key, stream.SPIFFEID)})(GapStatement(stream, 1, 9, g))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckGap(stream, 1, 9, g); err != nil {
			t.Errorf("%T: %v", key, err)
		}
		if err := CheckGap(stream, 1, 10, g); err == nil {
			t.Errorf("%T: verifies at another sequence", key)
		}
		g.Count = 4
		if err := CheckGap(stream, 1, 9, g); err == nil {
			t.Errorf("%T: verifies with another count", key)
		}
		g.Count = 5
		g.Certificates[0] = leaf(t, key, "spiffe://example.org/svc/other").Raw
		if err := CheckGap(stream, 1, 9, g); err == nil {
			t.Errorf("%T: verifies with a certificate of somebody else", key)
		}
	}
}

// recorderFunc is a Recorder that a test watches.
type recorderFunc func(*Event) (Receipt, error)

func (f recorderFunc) Record(ev *Event) (Receipt, error) { return f(ev) }

func TestEmitter(t *testing.T) {
	at := time.Unix(5, 0)
	var got Event
	emit := Emitter(recorderFunc(func(ev *Event) (Receipt, error) { got = *ev; return Receipt{}, nil }), func() time.Time { return at })
	act := identity.Act{
		Kind: identity.ActCredential, Verb: "issued", Actor: "spiffe://example.org/node/a", Object: "x509-svid", ObjectID: "01",
		Details: [][2]string{{"serial", "01"}}, Failed: true, Reason: "no",
	}
	if err := emit(context.Background(), act); err != nil {
		t.Fatal(err)
	}
	want := Event{
		Kind: auditv1.Kind_KIND_CREDENTIAL, Time: at, Outcome: auditv1.Outcome_OUTCOME_FAILURE, Reason: "no",
		Action: &auditv1.Action{Verb: "issued", Actor: "spiffe://example.org/node/a", Object: "x509-svid", ObjectId: "01", Details: []*auditv1.Field{{Name: "serial", Values: []string{"01"}}}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	full := Emitter(recorderFunc(func(*Event) (Receipt, error) { return Receipt{}, ErrFull }), nil)
	if err := full(context.Background(), act); !errors.Is(err, ErrFull) {
		t.Errorf("error %v, want ErrFull", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := emit(ctx, act); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
}

func TestLifecycle(t *testing.T) {
	p := Program{Name: "writd", Version: "1", Actor: "spiffe://example.org/writ/server"}
	ev := p.Started(time.Unix(1, 0))
	details := map[string]string{}
	for _, d := range ev.Action.Details {
		details[d.Name] = d.Values[0]
	}
	if ev.Kind != auditv1.Kind_KIND_LIFECYCLE || ev.Action.Verb != "started" || details["version"] != "1" || details["clock"] == "" {
		t.Errorf("event %+v", ev)
	}
	if stopped := p.Stopped(time.Unix(2, 0)); stopped.Action.Verb != "stopped" {
		t.Errorf("verb %q", stopped.Action.Verb)
	}
}

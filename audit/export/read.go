package export

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// maxLine bounds a line of JSON Lines in bytes. JSON can take six bytes for one
// of an event's.
const maxLine = 8 * audit.MaxEventBytes

// ReadJSONLines reads what NewJSONLines wrote. The events are encoded anew, so
// that they mean what they meant, and their hashes prove nothing: for proof
// there is the archive. The last pair holds the error that ended it, if one
// did, with the line.
func ReadJSONLines(r io.Reader) iter.Seq2[*auditv1.StoredRecord, error] {
	return func(yield func(*auditv1.StoredRecord, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(make([]byte, 64<<10), maxLine)
		n := 0
		for lines.Scan() {
			n++
			if len(bytes.TrimSpace(lines.Bytes())) == 0 {
				continue
			}
			s, err := readLine(lines.Bytes())
			if err != nil {
				yield(nil, fmt.Errorf("line %d: %w", n, err))
				return
			}
			if !yield(s, nil) {
				return
			}
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(nil, fmt.Errorf("line %d: longer than %d bytes", n+1, maxLine))
		} else if err != nil {
			yield(nil, err)
		}
	}
}

func readLine(line []byte) (*auditv1.StoredRecord, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var r Record
	if err := dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("not a record of \"audit export --format jsonl\": %w", err)
	}
	if dec.More() {
		return nil, errors.New("more than one record")
	}
	return r.Stored()
}

// Stored is the record that FromStored read. An event that could not be read
// is what it was; one that was erased is empty.
func (r *Record) Stored() (*auditv1.StoredRecord, error) {
	p := parser{}
	s := &auditv1.StoredRecord{
		Stream: &auditv1.Stream{SpiffeId: r.Stream, Instance: r.Instance}, Epoch: r.Epoch, Sequence: r.Sequence,
		DecisionId: r.DecisionID, Chain: p.hex("chain", r.Chain), Received: p.time("received", r.Received),
		Record: &auditv1.Record{},
	}
	switch r.Kind {
	case "erased":
	case "unreadable":
		event, err := base64.StdEncoding.DecodeString(r.Raw)
		p.note("raw", err)
		s.Record.Event = event
	default:
		event, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.event(&p))
		p.note("event", err)
		s.Record.Event = event
	}
	if p.err != nil {
		return nil, p.err
	}
	return s, nil
}

func (r *Record) event(p *parser) *auditv1.Event {
	ev := &auditv1.Event{
		Schema: audit.SchemaVersion, Time: p.time("time", r.Time), Enforced: r.Enforced,
		Kind:      auditv1.Kind(p.word("kind", r.Kind, auditv1.Kind_value, "KIND_")),
		Outcome:   auditv1.Outcome(p.word("outcome", r.Outcome, auditv1.Outcome_value, "OUTCOME_")),
		Mode:      auditv1.Mode(p.word("mode", r.Mode, auditv1.Mode_value, "MODE_")),
		Tier:      p.tier(r.Tier),
		Direction: r.Direction, Layer: r.Layer, TokenStatus: r.TokenStatus,
		Reason: r.Reason, TraceId: r.TraceID, Latency: r.LatencyNS, Omitted: r.Omitted, Sequence: r.Sequence,
	}
	if r.SourceID+r.SourceTrustDomain+r.SourcePath+r.SourceAuthn+r.SourceSerial != "" {
		ev.Source = &auditv1.Source{Id: r.SourceID, TrustDomain: r.SourceTrustDomain, Path: r.SourcePath, Authn: r.SourceAuthn, Serial: p.hex("source_serial", r.SourceSerial)}
	}
	if r.DestinationService+r.DestinationID != "" || r.DestinationPort != 0 {
		ev.Destination = &auditv1.Destination{Service: r.DestinationService, Id: r.DestinationID, Port: r.DestinationPort}
	}
	if r.Layer == policy.LayerRequest {
		ev.Request = &auditv1.Request{
			Protocol: r.Protocol, Method: r.Method, Host: r.Host, Path: r.Path, GrpcService: r.GRPCService, GrpcMethod: r.GRPCMethod,
			Headers: fieldsOf(r.Headers), Query: fieldsOf(r.Query), ContentLength: r.ContentLength,
		}
	}
	c := &auditv1.Connection{
		PeerIp: r.PeerIP, PeerPort: r.PeerPort, ClientIp: r.ClientIP, TlsVersion: r.TLSVersion, Sni: r.SNI, Alpn: r.ALPN, KeyExchange: r.KeyExchange,
	}
	if proto.Size(c) > 0 {
		ev.Connection = c
	}
	for _, rule := range r.Rules {
		ev.Rules = append(ev.Rules, &auditv1.Rule{Id: rule.ID, File: rule.File, Line: rule.Line})
	}
	if r.RevisionEpoch != 0 || r.RevisionNumber != 0 || r.RevisionDigest != "" {
		ev.Revision = &auditv1.Revision{Epoch: r.RevisionEpoch, Number: r.RevisionNumber, Digest: p.hex("revision_digest", r.RevisionDigest)}
	}
	if r.GapCause != "" {
		// The signature is not exported.
		ev.Gap = &auditv1.Gap{FirstSequence: r.GapFirstSequence, Count: r.GapCount, Cause: r.GapCause}
	}
	if r.ActionVerb+r.ActionActor+r.ActionObject+r.ActionObjectID != "" {
		ev.Action = &auditv1.Action{Verb: r.ActionVerb, Actor: r.ActionActor, Object: r.ActionObject, ObjectId: r.ActionObjectID, Details: fieldsOf(r.ActionDetails)}
	}
	return ev
}

func fieldsOf(list []Field) []*auditv1.Field {
	var out []*auditv1.Field
	for _, f := range list {
		out = append(out, &auditv1.Field{Name: f.Name, Values: f.Values})
	}
	return out
}

// parser reads the fields of a Record and keeps the first error.
type parser struct{ err error }

func (p *parser) note(field string, err error) {
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("%s: %w", field, err)
	}
}

func (p *parser) hex(field, s string) []byte {
	if s == "" {
		return nil
	}
	b, err := hex.DecodeString(s)
	p.note(field, err)
	return b
}

func (p *parser) time(field, s string) int64 {
	if s == "" {
		return 0
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	p.note(field, err)
	return t.UnixNano()
}

func (p *parser) word(field, s string, values map[string]int32, prefix string) int32 {
	if s == "" {
		return 0
	}
	n, ok := values[prefix+strings.ToUpper(s)]
	if !ok {
		p.note(field, fmt.Errorf("%q is not one", s))
	}
	return n
}

func (p *parser) tier(s string) auditv1.Tier {
	if s == "" {
		return 0
	}
	for t := policy.Guardrail; t <= policy.Enforcement; t++ {
		if t.String() == s {
			return auditv1.Tier(t)
		}
	}
	p.note("tier", fmt.Errorf("%q is not one", s))
	return 0
}

// Package export writes audit records in the formats that other tools load:
// JSON Lines and CSV. It streams; the names of fields and columns are stable.
package export

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// Record is a record as JSON Lines hold it; the columns of the CSV have the
// same names. Times are RFC 3339 in UTC with nanoseconds, bytes are hex, and
// what is empty is left out.
type Record struct {
	DecisionID string `json:"decision_id"`
	// Stream, instance, epoch and sequence place the record; chain is the hash
	// after it.
	Stream   string `json:"stream"`
	Instance string `json:"instance"`
	Epoch    uint32 `json:"epoch"`
	Sequence uint64 `json:"sequence"`
	Chain    string `json:"chain"`
	Time     string `json:"time"`
	Received string `json:"received"`
	Kind     string `json:"kind"`
	Outcome  string `json:"outcome"`
	Mode     string `json:"mode,omitempty"`
	Enforced bool   `json:"enforced"`

	Direction          string  `json:"direction,omitempty"`
	Layer              string  `json:"layer,omitempty"`
	SourceID           string  `json:"source_id,omitempty"`
	SourceTrustDomain  string  `json:"source_trust_domain,omitempty"`
	SourcePath         string  `json:"source_path,omitempty"`
	SourceAuthn        string  `json:"source_authn,omitempty"`
	SourceSerial       string  `json:"source_serial,omitempty"`
	DestinationService string  `json:"destination_service,omitempty"`
	DestinationID      string  `json:"destination_id,omitempty"`
	DestinationPort    uint32  `json:"destination_port,omitempty"`
	Protocol           string  `json:"protocol,omitempty"`
	Method             string  `json:"method,omitempty"`
	Host               string  `json:"host,omitempty"`
	Path               string  `json:"path,omitempty"`
	GRPCService        string  `json:"grpc_service,omitempty"`
	GRPCMethod         string  `json:"grpc_method,omitempty"`
	Headers            []Field `json:"headers,omitempty"`
	Query              []Field `json:"query,omitempty"`
	// ContentLength in bytes, -1 when unknown.
	ContentLength int64  `json:"content_length,omitempty"`
	PeerIP        string `json:"peer_ip,omitempty"`
	PeerPort      uint32 `json:"peer_port,omitempty"`
	ClientIP      string `json:"client_ip,omitempty"`
	TLSVersion    string `json:"tls_version,omitempty"`
	SNI           string `json:"sni,omitempty"`
	ALPN          string `json:"alpn,omitempty"`
	KeyExchange   string `json:"key_exchange,omitempty"`
	TokenStatus   string `json:"token_status,omitempty"`

	Tier           string `json:"tier,omitempty"`
	Rules          []Rule `json:"rules,omitempty"`
	RevisionEpoch  uint64 `json:"revision_epoch,omitempty"`
	RevisionNumber uint64 `json:"revision_number,omitempty"`
	RevisionDigest string `json:"revision_digest,omitempty"`
	Reason         string `json:"reason,omitempty"`
	TraceID        string `json:"trace_id,omitempty"`
	LatencyNS      uint64 `json:"latency_ns,omitempty"`

	// A gap is a loss that its recorder states. GapCount is 0 when it is not
	// known how many records were lost.
	GapCause         string `json:"gap_cause,omitempty"`
	GapFirstSequence uint64 `json:"gap_first_sequence,omitempty"`
	GapCount         uint64 `json:"gap_count,omitempty"`
	GapSigned        bool   `json:"gap_signed,omitempty"`

	// An action is what an event that is no decision is about.
	ActionVerb     string  `json:"action_verb,omitempty"`
	ActionActor    string  `json:"action_actor,omitempty"`
	ActionObject   string  `json:"action_object,omitempty"`
	ActionObjectID string  `json:"action_object_id,omitempty"`
	ActionDetails  []Field `json:"action_details,omitempty"`

	// Omitted names what the record does not hold as it was.
	Omitted []string `json:"omitted,omitempty"`
	// Raw is the event where it cannot be read, in base64, and Error why.
	Raw   string `json:"raw,omitempty"`
	Error string `json:"error,omitempty"`
}

// Field is a name and its values.
type Field struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Rule is a rule that took part in a decision.
type Rule struct {
	ID   string `json:"id"`
	File string `json:"file,omitempty"`
	Line uint32 `json:"line,omitempty"`
}

// FromStored reads a record. An event that cannot be read is shown raw: an
// export leaves nothing out.
func FromStored(s *auditv1.StoredRecord) Record {
	r := Record{
		DecisionID: s.GetDecisionId(), Stream: s.GetStream().GetSpiffeId(), Instance: s.GetStream().GetInstance(),
		Epoch: s.GetEpoch(), Sequence: s.GetSequence(), Chain: hex.EncodeToString(s.GetChain()), Received: timestamp(s.GetReceived()),
	}
	if len(s.GetRecord().GetEvent()) == 0 {
		// No recorder writes an empty event.
		r.Kind, r.Outcome, r.Error = "erased", "unspecified", "the event was erased; its hash is in the chain"
		return r
	}
	var ev auditv1.Event
	if err := proto.Unmarshal(s.GetRecord().GetEvent(), &ev); err != nil {
		r.Kind, r.Outcome = "unreadable", "unspecified"
		r.Raw, r.Error = base64.StdEncoding.EncodeToString(s.GetRecord().GetEvent()), err.Error()
		return r
	}
	r.Time = timestamp(ev.Time)
	r.Kind, r.Outcome = KindName(ev.Kind), OutcomeName(ev.Outcome)
	if ev.Mode != auditv1.Mode_MODE_UNSPECIFIED {
		r.Mode = policy.Mode(ev.Mode).String()
	}
	if ev.Tier != auditv1.Tier_TIER_UNSPECIFIED {
		r.Tier = policy.Tier(ev.Tier).String()
	}
	r.Enforced, r.Direction, r.Layer, r.TokenStatus = ev.Enforced, ev.Direction, ev.Layer, ev.TokenStatus
	r.Reason, r.TraceID, r.LatencyNS, r.Omitted = ev.Reason, ev.TraceId, ev.Latency, ev.Omitted
	r.request(&ev)
	for _, rule := range ev.Rules {
		r.Rules = append(r.Rules, Rule{ID: rule.Id, File: rule.File, Line: rule.Line})
	}
	v, g, a := ev.Revision, ev.Gap, ev.Action
	r.RevisionEpoch, r.RevisionNumber, r.RevisionDigest = v.GetEpoch(), v.GetNumber(), hex.EncodeToString(v.GetDigest())
	r.GapCause, r.GapFirstSequence, r.GapCount, r.GapSigned = g.GetCause(), g.GetFirstSequence(), g.GetCount(), len(g.GetSignature()) > 0
	r.ActionVerb, r.ActionActor, r.ActionObject, r.ActionObjectID = a.GetVerb(), a.GetActor(), a.GetObject(), a.GetObjectId()
	r.ActionDetails = fields(a.GetDetails())
	return r
}

func (r *Record) request(ev *auditv1.Event) {
	s, d, q, c := ev.Source, ev.Destination, ev.Request, ev.Connection
	r.SourceID, r.SourceTrustDomain, r.SourcePath = s.GetId(), s.GetTrustDomain(), s.GetPath()
	r.SourceAuthn, r.SourceSerial = s.GetAuthn(), hex.EncodeToString(s.GetSerial())
	r.DestinationService, r.DestinationID, r.DestinationPort = d.GetService(), d.GetId(), d.GetPort()
	r.Protocol, r.Method, r.Host, r.Path = q.GetProtocol(), q.GetMethod(), q.GetHost(), q.GetPath()
	r.GRPCService, r.GRPCMethod = q.GetGrpcService(), q.GetGrpcMethod()
	r.Headers, r.Query, r.ContentLength = fields(q.GetHeaders()), fields(q.GetQuery()), q.GetContentLength()
	r.PeerIP, r.PeerPort, r.ClientIP = c.GetPeerIp(), c.GetPeerPort(), c.GetClientIp()
	r.TLSVersion, r.SNI, r.ALPN, r.KeyExchange = c.GetTlsVersion(), c.GetSni(), c.GetAlpn(), c.GetKeyExchange()
}

func fields(list []*auditv1.Field) []Field {
	var out []Field
	for _, f := range list {
		out = append(out, Field{Name: f.Name, Values: f.Values})
	}
	return out
}

func timestamp(ns int64) string {
	return time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// KindName is a kind as exports and commands spell it: decision, gap…
func KindName(k auditv1.Kind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "KIND_"))
}

// OutcomeName is an outcome as exports and commands spell it: allow, deny…
func OutcomeName(o auditv1.Outcome) string {
	return strings.ToLower(strings.TrimPrefix(o.String(), "OUTCOME_"))
}

// Summary counts what was written. Losses belong to every export.
type Summary struct {
	Events uint64 `json:"events"`
	// Gaps are events in which recorders state a loss, Lost the number of
	// records lost as far as known.
	Gaps       uint64 `json:"gaps"`
	Lost       uint64 `json:"lost"`
	Unreadable uint64 `json:"unreadable"`
}

func (s *Summary) count(r *Record) {
	s.Events++
	if r.Kind == KindName(auditv1.Kind_KIND_GAP) {
		s.Gaps++
		s.Lost += r.GapCount
	}
	if r.Raw != "" {
		s.Unreadable++
	}
}

func (s Summary) String() string {
	out := audit.Count(s.Events, "event", "events")
	if s.Gaps > 0 {
		out += fmt.Sprintf("; %s, %s lost as far as known", audit.Count(s.Gaps, "gap", "gaps"), audit.Count(s.Lost, "record", "records"))
	} else {
		out += "; no gaps"
	}
	if s.Unreadable > 0 {
		out += fmt.Sprintf("; %d unreadable", s.Unreadable)
	}
	return out
}

// Writer writes records in one format.
type Writer interface {
	Write(*auditv1.StoredRecord) error
	// Close writes what is buffered, and tells what was written. It does not
	// close what is below.
	Close() (Summary, error)
}

type jsonLines struct {
	w       *bufio.Writer
	enc     *json.Encoder
	summary Summary
}

// NewJSONLines writes one Record per line.
func NewJSONLines(w io.Writer) Writer {
	buf := bufio.NewWriter(w)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	return &jsonLines{w: buf, enc: enc}
}

func (j *jsonLines) Write(s *auditv1.StoredRecord) error {
	r := FromStored(s)
	if err := j.enc.Encode(&r); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	j.summary.count(&r)
	return nil
}

func (j *jsonLines) Close() (Summary, error) {
	if err := j.w.Flush(); err != nil {
		return j.summary, fmt.Errorf("write records: %w", err)
	}
	return j.summary, nil
}

package export

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/audit/auditv1"
)

// column is a column of the CSV. New ones are added at the end.
type column struct {
	name string
	cell func(*Record) string
}

func columns() []column {
	return []column{
		{"time", func(r *Record) string { return r.Time }},
		{"received", func(r *Record) string { return r.Received }},
		{"decision_id", func(r *Record) string { return text(r.DecisionID) }},
		{"stream", func(r *Record) string { return text(r.Stream) }},
		{"instance", func(r *Record) string { return text(r.Instance) }},
		{"epoch", func(r *Record) string { return number(r.Epoch) }},
		{"sequence", func(r *Record) string { return number(r.Sequence) }},
		{"chain", func(r *Record) string { return r.Chain }},
		{"kind", func(r *Record) string { return r.Kind }},
		{"outcome", func(r *Record) string { return r.Outcome }},
		{"mode", func(r *Record) string { return r.Mode }},
		{"enforced", func(r *Record) string { return strconv.FormatBool(r.Enforced) }},
		{"direction", func(r *Record) string { return text(r.Direction) }},
		{"layer", func(r *Record) string { return text(r.Layer) }},
		{"source_id", func(r *Record) string { return text(r.SourceID) }},
		{"source_authn", func(r *Record) string { return text(r.SourceAuthn) }},
		{"source_serial", func(r *Record) string { return r.SourceSerial }},
		{"destination_service", func(r *Record) string { return text(r.DestinationService) }},
		{"destination_id", func(r *Record) string { return text(r.DestinationID) }},
		{"destination_port", func(r *Record) string { return number(r.DestinationPort) }},
		{"protocol", func(r *Record) string { return text(r.Protocol) }},
		{"method", func(r *Record) string { return text(r.Method) }},
		{"host", func(r *Record) string { return text(r.Host) }},
		{"path", func(r *Record) string { return text(r.Path) }},
		{"grpc_service", func(r *Record) string { return text(r.GRPCService) }},
		{"grpc_method", func(r *Record) string { return text(r.GRPCMethod) }},
		{"headers", func(r *Record) string { return joined(r.Headers) }},
		{"query", func(r *Record) string { return joined(r.Query) }},
		{"content_length", func(r *Record) string {
			if r.ContentLength == 0 {
				return ""
			}
			return strconv.FormatInt(r.ContentLength, 10)
		}},
		{"peer_ip", func(r *Record) string { return text(r.PeerIP) }},
		{"peer_port", func(r *Record) string { return number(r.PeerPort) }},
		{"client_ip", func(r *Record) string { return text(r.ClientIP) }},
		{"tls_version", func(r *Record) string { return text(r.TLSVersion) }},
		{"sni", func(r *Record) string { return text(r.SNI) }},
		{"alpn", func(r *Record) string { return text(r.ALPN) }},
		{"key_exchange", func(r *Record) string { return text(r.KeyExchange) }},
		{"token_status", func(r *Record) string { return text(r.TokenStatus) }},
		{"tier", func(r *Record) string { return r.Tier }},
		{"rules", func(r *Record) string {
			var ids []string
			for _, rule := range r.Rules {
				ids = append(ids, rule.ID)
			}
			return text(strings.Join(ids, " "))
		}},
		{"revision_epoch", func(r *Record) string { return number(r.RevisionEpoch) }},
		{"revision_number", func(r *Record) string { return number(r.RevisionNumber) }},
		{"revision_digest", func(r *Record) string { return r.RevisionDigest }},
		{"reason", func(r *Record) string { return text(r.Reason) }},
		{"trace_id", func(r *Record) string { return text(r.TraceID) }},
		{"latency_ns", func(r *Record) string { return number(r.LatencyNS) }},
		{"gap_cause", func(r *Record) string { return text(r.GapCause) }},
		{"gap_first_sequence", func(r *Record) string { return number(r.GapFirstSequence) }},
		{"gap_count", func(r *Record) string { return number(r.GapCount) }},
		{"gap_signed", func(r *Record) string {
			if r.GapCause == "" {
				return ""
			}
			return strconv.FormatBool(r.GapSigned)
		}},
		{"action_verb", func(r *Record) string { return text(r.ActionVerb) }},
		{"action_actor", func(r *Record) string { return text(r.ActionActor) }},
		{"action_object", func(r *Record) string { return text(r.ActionObject) }},
		{"action_object_id", func(r *Record) string { return text(r.ActionObjectID) }},
		{"action_details", func(r *Record) string { return joined(r.ActionDetails) }},
		{"omitted", func(r *Record) string { return text(strings.Join(r.Omitted, " ")) }},
		{"raw", func(r *Record) string { return text(r.Raw) }},
		{"error", func(r *Record) string { return text(r.Error) }},
	}
}

type csvWriter struct {
	w       *csv.Writer
	columns []column
	row     []string
	begun   bool
	summary Summary
}

// NewCSV writes a header line and one line per record (RFC 4180). Lists are
// joined with spaces. A text that a spreadsheet would take for a formula gets a
// leading apostrophe.
func NewCSV(w io.Writer) Writer { return &csvWriter{w: csv.NewWriter(w), columns: columns()} }

func (c *csvWriter) header() error {
	if c.begun {
		return nil
	}
	c.begun = true
	c.row = c.row[:0]
	for _, col := range c.columns {
		c.row = append(c.row, col.name)
	}
	if err := c.w.Write(c.row); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	return nil
}

func (c *csvWriter) Write(s *auditv1.StoredRecord) error {
	if err := c.header(); err != nil {
		return err
	}
	r := FromStored(s)
	c.row = c.row[:0]
	for _, col := range c.columns {
		c.row = append(c.row, col.cell(&r))
	}
	if err := c.w.Write(c.row); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	c.summary.count(&r)
	return nil
}

func (c *csvWriter) Close() (Summary, error) {
	if err := c.header(); err != nil {
		return c.summary, err
	}
	c.w.Flush()
	if err := c.w.Error(); err != nil {
		return c.summary, fmt.Errorf("write records: %w", err)
	}
	return c.summary, nil
}

// joined is name=value, separated by spaces.
func joined(list []Field) string {
	var parts []string
	for _, f := range list {
		parts = append(parts, f.Name+"="+strings.Join(f.Values, ","))
	}
	return text(strings.Join(parts, " "))
}

// number leaves a cell empty where there is nothing to tell.
func number[T uint32 | uint64](n T) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(n), 10)
}

// text guards a cell against being taken for a formula: OWASP's list of
// leading characters, the full-width forms that spreadsheets fold included.
func text(s string) string {
	trimmed := strings.TrimLeft(s, " ")
	if trimmed != "" && strings.ContainsAny(trimmed[:1], "=+-@\t\r\n'") || strings.HasPrefix(trimmed, "＝") ||
		strings.HasPrefix(trimmed, "＋") || strings.HasPrefix(trimmed, "－") || strings.HasPrefix(trimmed, "＠") {
		return "'" + s
	}
	return s
}

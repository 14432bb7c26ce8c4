package export

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit/auditv1"
)

func stored(t testing.TB, sequence uint64, ev *auditv1.Event) *auditv1.StoredRecord {
	t.Helper()
	b, err := proto.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	return &auditv1.StoredRecord{
		Stream: &auditv1.Stream{SpiffeId: "spiffe://example.org/svc/web", Instance: "i"}, Epoch: 1, Sequence: sequence, DecisionId: "abc",
		Chain: []byte{1, 2}, Received: 1_700_000_000_000_000_001, Record: &auditv1.Record{Event: b, Salt: make([]byte, 16)},
	}
}

func decision() *auditv1.Event {
	return &auditv1.Event{
		Schema: 1, Kind: auditv1.Kind_KIND_DECISION, Time: 1_700_000_000_000_000_000, Outcome: auditv1.Outcome_OUTCOME_DENY, Mode: auditv1.Mode_MODE_OBSERVE,
		Direction: "inbound", Layer: "request",
		Source:      &auditv1.Source{Id: "spiffe://example.org/svc/a", TrustDomain: "example.org", Path: "/svc/a", Authn: "mtls", Serial: []byte{0xab}},
		Destination: &auditv1.Destination{Service: "web", Id: "spiffe://example.org/svc/web", Port: 8443},
		Request: &auditv1.Request{
			Protocol: "http", Method: "GET", Host: "=cmd|' /C calc'!A0", Path: "/a,b\"c",
			Headers: []*auditv1.Field{{Name: "x-team", Values: []string{"red", "blue"}}}, ContentLength: -1,
		},
		Connection: &auditv1.Connection{PeerIp: "10.0.0.1", PeerPort: 5, TlsVersion: "1.3"},
		Tier:       auditv1.Tier_TIER_SERVICE_DENY, Rules: []*auditv1.Rule{{Id: "r1", File: "a.rego", Line: 3}, {Id: "r2"}},
		Revision: &auditv1.Revision{Epoch: 1, Number: 7, Digest: []byte{0xcd}}, Reason: "-no", Latency: 12, Omitted: []string{"headers.x-other"},
	}
}

func all(t testing.TB) []*auditv1.StoredRecord {
	broken := stored(t, 4, decision())
	broken.Record.Event = []byte{0xff}
	return []*auditv1.StoredRecord{
		stored(t, 1, decision()),
		stored(t, 2, &auditv1.Event{Kind: auditv1.Kind_KIND_GAP, Gap: &auditv1.Gap{Cause: "drop", Count: 12, Signature: []byte{1}}}),
		stored(t, 3, &auditv1.Event{Kind: auditv1.Kind_KIND_ADMIN, Action: &auditv1.Action{Verb: "read", Actor: "unix:uid:0", Object: "audit", Details: []*auditv1.Field{{Name: "a", Values: []string{"b"}}}}}),
		broken,
	}
}

func write(t testing.TB, w Writer) Summary {
	t.Helper()
	for _, r := range all(t) {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var wantSummary = Summary{Events: 4, Gaps: 1, Lost: 12, Unreadable: 1}

// The names are a contract with whoever loads the files.
func TestJSONLines(t *testing.T) {
	var out bytes.Buffer
	if diff := cmp.Diff(wantSummary, write(t, NewJSONLines(&out))); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	want := `{"decision_id":"abc","stream":"spiffe://example.org/svc/web","instance":"i","epoch":1,"sequence":1,"chain":"0102",` +
		`"time":"2023-11-14T22:13:20.000000000Z","received":"2023-11-14T22:13:20.000000001Z","kind":"decision","outcome":"deny","mode":"observe","enforced":false,` +
		`"direction":"inbound","layer":"request","source_id":"spiffe://example.org/svc/a","source_trust_domain":"example.org","source_path":"/svc/a","source_authn":"mtls","source_serial":"ab",` +
		`"destination_service":"web","destination_id":"spiffe://example.org/svc/web","destination_port":8443,"protocol":"http","method":"GET","host":"=cmd|' /C calc'!A0","path":"/a,b\"c",` +
		`"headers":[{"name":"x-team","values":["red","blue"]}],"content_length":-1,"peer_ip":"10.0.0.1","peer_port":5,"tls_version":"1.3",` +
		`"tier":"service-deny","rules":[{"id":"r1","file":"a.rego","line":3},{"id":"r2"}],"revision_epoch":1,"revision_number":7,"revision_digest":"cd","reason":"-no","latency_ns":12,"omitted":["headers.x-other"]}`
	if diff := cmp.Diff(want, lines[0]); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if !strings.Contains(lines[1], `"gap_cause":"drop","gap_count":12,"gap_signed":true`) || !strings.Contains(lines[3], `"kind":"unreadable"`) || !strings.Contains(lines[3], `"raw":"/w=="`) {
		t.Errorf("lines %q", lines[1:])
	}
}

func TestCSV(t *testing.T) {
	var out bytes.Buffer
	if diff := cmp.Diff(wantSummary, write(t, NewCSV(&out))); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	rows, err := csv.NewReader(bufio.NewReader(&out)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for i, name := range rows[0] {
		if rows[1][i] != "" {
			got[name] = rows[1][i]
		}
	}
	want := map[string]string{
		"time": "2023-11-14T22:13:20.000000000Z", "received": "2023-11-14T22:13:20.000000001Z", "decision_id": "abc", "stream": "spiffe://example.org/svc/web", "instance": "i",
		"epoch": "1", "sequence": "1", "chain": "0102", "kind": "decision", "outcome": "deny", "mode": "observe", "enforced": "false", "direction": "inbound", "layer": "request",
		"source_id": "spiffe://example.org/svc/a", "source_authn": "mtls", "source_serial": "ab", "destination_service": "web", "destination_id": "spiffe://example.org/svc/web", "destination_port": "8443",
		"protocol": "http", "method": "GET", "host": "'=cmd|' /C calc'!A0", "path": "/a,b\"c", "headers": "x-team=red,blue", "content_length": "-1",
		"peer_ip": "10.0.0.1", "peer_port": "5", "tls_version": "1.3", "tier": "service-deny", "rules": "r1 r2", "revision_epoch": "1", "revision_number": "7", "revision_digest": "cd",
		"reason": "'-no", "latency_ns": "12", "omitted": "headers.x-other",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
	if len(rows) != 5 {
		t.Errorf("%d rows, want 5", len(rows))
	}
}

// An export of nothing is still a file that loads.
func TestEmpty(t *testing.T) {
	var out bytes.Buffer
	if s, err := NewCSV(&out).Close(); err != nil || s != (Summary{}) || !strings.HasPrefix(out.String(), "time,received,") {
		t.Errorf("%v, %v, %q", s, err, out.String())
	}
	if s := (Summary{Events: 3}).String(); s != "3 events; no gaps" {
		t.Errorf("summary %q", s)
	}
}

// Every column has the name of a field, and every field but two that the ID
// holds has a column.
func TestNames(t *testing.T) {
	var fields, cols []string
	typ := reflect.TypeFor[Record]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if name != "source_trust_domain" && name != "source_path" {
			fields = append(fields, name)
		}
	}
	for _, c := range columns() {
		cols = append(cols, c.name)
	}
	slices.Sort(fields)
	slices.Sort(cols)
	if diff := cmp.Diff(fields, cols); diff != "" {
		t.Errorf("columns (-fields +columns):\n%s", diff)
	}
}

// FuzzText: no cell begins as a formula does, and nothing of it is lost.
func FuzzText(f *testing.F) {
	for _, s := range []string{"=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "＝1", "plain", "'quoted", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := text(s)
		if got != s && got != "'"+s {
			t.Fatalf("%q became %q", s, got)
		}
		if trimmed := strings.TrimLeft(got, " "); trimmed != "" && strings.ContainsRune("=+-@\t\r\n", rune(trimmed[0])) {
			t.Fatalf("%q begins as a formula does", got)
		}
	})
}

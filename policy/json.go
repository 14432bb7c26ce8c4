package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy/internal/strictjson"
)

// Limits of an Input as JSON.
const (
	maxInputBytes = 1 << 20
	maxInputDepth = 64
)

// EncodeInput writes in as JSON, version 1 (rego/schemas/input.json). Fields
// that the layer does not have are left out; bytes that are not UTF-8 become
// U+FFFD, as they do for the policy.
func EncodeInput(in *Input) ([]byte, error) {
	doc := inputJSON{
		Version:     InputVersion,
		Direction:   in.Direction,
		Layer:       in.Layer,
		Source:      sourceJSON{in.Source.ID, in.Source.TrustDomain, in.Source.Path, in.Source.Authn},
		Destination: destinationJSON{in.Destination.Service, in.Destination.ID, in.Destination.Port},
		Tokens:      make([]tokenJSON, len(in.Tokens)),
		TokenStatus: in.TokenStatus,
		Connection: connectionJSON{in.Connection.PeerIP, in.Connection.ClientIP, in.Connection.TLSVersion,
			in.Connection.SNI, in.Connection.ALPN},
		Time: in.Time.UTC().Format(time.RFC3339Nano),
	}
	if doc.TokenStatus == "" {
		doc.TokenStatus = TokenAbsent
	}
	for i, t := range in.Tokens {
		doc.Tokens[i] = tokenJSON{t.Issuer, t.Subject, list(t.Audience), t.Claims, t.Actor}
		if t.Claims == nil {
			doc.Tokens[i].Claims = map[string]any{}
		}
	}
	if in.Layer == LayerRequest {
		r := &in.Request
		doc.Request = &requestJSON{
			Protocol: r.Protocol, Method: r.Method, Host: r.Host, Path: r.Path, Segments: list(r.Segments),
			Query: values(r.Query), Headers: values(r.Headers), ContentLength: r.ContentLength,
		}
		if r.Protocol == GRPC {
			doc.Request.GRPC = &grpcJSON{r.GRPCService, r.GRPCMethod}
		}
	}
	return json.Marshal(doc)
}

type inputJSON struct {
	Version     int             `json:"version"`
	Direction   string          `json:"direction"`
	Layer       string          `json:"layer"`
	Source      sourceJSON      `json:"source"`
	Destination destinationJSON `json:"destination"`
	Request     *requestJSON    `json:"request,omitempty"`
	Tokens      []tokenJSON     `json:"tokens"`
	TokenStatus string          `json:"token_status"`
	Connection  connectionJSON  `json:"connection"`
	Time        string          `json:"time"`
}

type sourceJSON struct {
	ID          string `json:"id"`
	TrustDomain string `json:"trust_domain"`
	Path        string `json:"path"`
	Authn       string `json:"authn"`
}

type destinationJSON struct {
	Service string `json:"service"`
	ID      string `json:"id"`
	Port    int    `json:"port"`
}

type requestJSON struct {
	Protocol      string              `json:"protocol"`
	Method        string              `json:"method"`
	Host          string              `json:"host"`
	Path          string              `json:"path"`
	Segments      []string            `json:"segments"`
	Query         map[string][]string `json:"query"`
	Headers       map[string][]string `json:"headers"`
	GRPC          *grpcJSON           `json:"grpc,omitempty"`
	ContentLength int64               `json:"content_length"`
}

type grpcJSON struct {
	Service string `json:"service"`
	Method  string `json:"method"`
}

type tokenJSON struct {
	Issuer   string         `json:"issuer"`
	Subject  string         `json:"subject"`
	Audience []string       `json:"audience"`
	Claims   map[string]any `json:"claims"`
	Actor    string         `json:"actor"`
}

type connectionJSON struct {
	PeerIP     string `json:"peer_ip"`
	ClientIP   string `json:"client_ip"`
	TLSVersion string `json:"tls_version"`
	SNI        string `json:"sni"`
	ALPN       string `json:"alpn"`
}

// list makes sure that an empty list is [] and not null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func values(v Values) map[string][]string {
	m := map[string][]string{}
	if v != nil {
		v.Each(func(name string, values []string) bool {
			m[name] = list(values)
			return true
		})
	}
	return m
}

// DecodeInput reads what EncodeInput writes, and accepts nothing that the
// schema does not: an unknown field is an error that names the near miss.
// time may be left out and is then zero; whoever decides fills it in. Numbers
// in claims become json.Number.
func DecodeInput(data []byte) (*Input, error) {
	if len(data) > maxInputBytes {
		return nil, fmt.Errorf("input: larger than %d bytes", maxInputBytes)
	}
	tree, err := strictjson.Decode(data, maxInputDepth)
	if err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	in := new(Input)
	if err := readObject(tree, "input", inputFields(in)); err != nil {
		return nil, err
	}
	hasRequest := in.Request.Protocol != ""
	if in.Layer == LayerRequest && !hasRequest {
		return nil, fmt.Errorf("input.request: missing at layer %s", in.Layer)
	}
	if in.Layer == LayerConnection && hasRequest {
		return nil, fmt.Errorf("input.request: there is none at layer %s", in.Layer)
	}
	return in, nil
}

// field is one field of an object of the schema.
type field struct {
	name     string
	optional bool
	read     func(v any, at string) error
}

func inputFields(in *Input) []field {
	return []field{
		{name: "version", read: func(v any, at string) error {
			if v != json.Number("1") {
				return fmt.Errorf("%s: want 1, got %s", at, show(v))
			}
			return nil
		}},
		{name: "direction", read: oneOf(&in.Direction, Inbound, Outbound)},
		{name: "layer", read: oneOf(&in.Layer, LayerConnection, LayerRequest)},
		{name: "source", read: object(
			field{name: "id", read: text(&in.Source.ID)},
			field{name: "trust_domain", read: text(&in.Source.TrustDomain)},
			field{name: "path", read: text(&in.Source.Path)},
			field{name: "authn", read: oneOf(&in.Source.Authn, AuthnMTLS, AuthnToken, AuthnNone)},
		)},
		{name: "destination", read: object(
			field{name: "service", read: text(&in.Destination.Service)},
			field{name: "id", read: text(&in.Destination.ID)},
			field{name: "port", read: func(v any, at string) error {
				n, err := integer(v, at, 0, 65535)
				in.Destination.Port = int(n)
				return err
			}},
		)},
		{name: "request", optional: true, read: object(requestFields(&in.Request)...)},
		{name: "tokens", read: func(v any, at string) error { return readTokens(v, at, &in.Tokens) }},
		{name: "token_status", read: oneOf(&in.TokenStatus, TokenAbsent, TokenValid, TokenInvalid)},
		{name: "connection", read: object(
			field{name: "peer_ip", read: text(&in.Connection.PeerIP)},
			field{name: "client_ip", read: text(&in.Connection.ClientIP)},
			field{name: "tls_version", read: text(&in.Connection.TLSVersion)},
			field{name: "sni", read: text(&in.Connection.SNI)},
			field{name: "alpn", read: text(&in.Connection.ALPN)},
		)},
		{name: "time", optional: true, read: func(v any, at string) error {
			s, _ := v.(string)
			t, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return fmt.Errorf("%s: want a time such as 2030-01-31T12:00:00Z, got %s", at, show(v))
			}
			in.Time = t.UTC()
			return nil
		}},
	}
}

func requestFields(r *Request) []field {
	return []field{
		{name: "protocol", read: oneOf(&r.Protocol, HTTP, GRPC)},
		{name: "method", read: text(&r.Method)},
		{name: "host", read: text(&r.Host)},
		{name: "path", read: text(&r.Path)},
		{name: "segments", read: texts(&r.Segments)},
		{name: "query", read: func(v any, at string) error { return readValues(v, at, &r.Query, false) }},
		{name: "headers", read: func(v any, at string) error { return readValues(v, at, &r.Headers, true) }},
		{name: "grpc", optional: true, read: object(
			field{name: "service", read: text(&r.GRPCService)},
			field{name: "method", read: text(&r.GRPCMethod)},
		)},
		{name: "content_length", read: func(v any, at string) (err error) {
			r.ContentLength, err = integer(v, at, -1, 1<<62)
			return err
		}},
	}
}

func readTokens(v any, at string, into *[]Token) error {
	items, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%s: want a list, got %s", at, show(v))
	}
	for i, item := range items {
		var t Token
		err := readObject(item, fmt.Sprintf("%s[%d]", at, i), []field{
			{name: "issuer", read: text(&t.Issuer)},
			{name: "subject", read: text(&t.Subject)},
			{name: "audience", read: texts(&t.Audience)},
			{name: "claims", read: func(v any, at string) error {
				if t.Claims, ok = v.(map[string]any); !ok {
					return fmt.Errorf("%s: want an object, got %s", at, show(v))
				}
				return nil
			}},
			{name: "actor", read: text(&t.Actor)},
		})
		if err != nil {
			return err
		}
		*into = append(*into, t)
	}
	return nil
}

func readValues(v any, at string, into *Values, lowerCase bool) error {
	object, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: want an object of lists, got %s", at, show(v))
	}
	m := make(MapValues, len(object))
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if lower := strings.ToLower(name); lowerCase && lower != name {
			return fmt.Errorf("%s: header %q must be lower case: %q", at, name, lower)
		}
		var list []string
		if err := texts(&list)(object[name], fmt.Sprintf("%s[%q]", at, name)); err != nil {
			return err
		}
		m[name] = list
	}
	*into = m
	return nil
}

func object(fields ...field) func(any, string) error {
	return func(v any, at string) error { return readObject(v, at, fields) }
}

func readObject(v any, at string, fields []field) error {
	object, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: want an object, got %s", at, show(v))
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.name
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%s: unknown field %q%s", at, name, nearmiss.Hint(name, known))
		}
	}
	for _, f := range fields {
		v, ok := object[f.name]
		if !ok {
			if f.optional {
				continue
			}
			return fmt.Errorf("%s.%s: missing", at, f.name)
		}
		if err := f.read(v, at+"."+f.name); err != nil {
			return err
		}
	}
	return nil
}

func text(into *string) func(any, string) error {
	return func(v any, at string) error {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s: want a text, got %s", at, show(v))
		}
		*into = s
		return nil
	}
}

func oneOf(into *string, words ...string) func(any, string) error {
	return func(v any, at string) error {
		s, ok := v.(string)
		if !ok || !slices.Contains(words, s) {
			return fmt.Errorf("%s: want %s, got %s", at, strings.Join(words, " or "), show(v))
		}
		*into = s
		return nil
	}
}

func texts(into *[]string) func(any, string) error {
	return func(v any, at string) error {
		items, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%s: want a list of texts, got %s", at, show(v))
		}
		list := make([]string, len(items))
		for i, item := range items {
			if err := text(&list[i])(item, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
		*into = list
		return nil
	}
}

func integer(v any, at string, low, high int64) (int64, error) {
	n, ok := v.(json.Number)
	if i, err := n.Int64(); ok && err == nil && i >= low && i <= high {
		return i, nil
	}
	return 0, fmt.Errorf("%s: want a whole number from %d to %d, got %s", at, low, high, show(v))
}

// show names a wrong value in a message, without repeating a long one.
func show(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		if len(v) > 40 {
			v = v[:40] + "…"
		}
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprint(v)
}

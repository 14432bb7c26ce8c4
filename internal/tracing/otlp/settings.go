package otlp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/internal/authorities"
	"github.com/writ-dev/writ/internal/tracing"
)

// settings are what configuration and environment come to.
type settings struct {
	endpoint string // as it was given
	address  string
	tls      *tls.Config // nil is plain
	sampler  sdktrace.Sampler
	queue    int
}

// resolve puts them together; nil is that tracing is off. The configuration
// stands before the environment.
//
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
// and …/protocol/exporter/ have the variables. Those that are not named here (of
// headers, compression, timeouts, batches and limits) are read by the SDK.
func resolve(cfg *tracing.Config, getenv func(string) string) (*settings, error) {
	if cfg == nil {
		cfg = &tracing.Config{}
	}
	get := func(name string) string { return strings.TrimSpace(getenv(name)) }
	// exporting are the variables that there are for all signals and for traces.
	exporting := func(name string) (variable, value string) {
		variable = "OTEL_EXPORTER_OTLP_TRACES_" + name
		if value = get(variable); value == "" {
			variable = "OTEL_EXPORTER_OTLP_" + name
			value = get(variable)
		}
		return variable, value
	}
	s := &settings{endpoint: cfg.Endpoint}
	variable := "tracing.endpoint"
	if s.endpoint == "" {
		variable, s.endpoint = exporting("ENDPOINT")
	}
	if s.endpoint == "" || strings.EqualFold(get("OTEL_SDK_DISABLED"), "true") {
		return nil, nil
	}
	switch to := get("OTEL_TRACES_EXPORTER"); to {
	case "", "otlp":
	case "none":
		return nil, nil
	default:
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER: want otlp or none, got %q", to)
	}
	if name, protocol := exporting("PROTOCOL"); protocol != "" && protocol != "grpc" {
		return nil, fmt.Errorf("%s: OTLP is spoken over gRPC only (grpc), got %q", name, protocol)
	}
	address, plain, err := tracing.ParseEndpoint(s.endpoint)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	s.address = address
	if !plain {
		if s.tls, err = clientTLS(cfg.CAFile, exporting); err != nil {
			return nil, err
		}
	}
	if s.sampler, err = sampler(cfg.Sample, get); err != nil {
		return nil, err
	}
	s.queue = sdktrace.DefaultMaxQueueSize
	if size := get("OTEL_BSP_MAX_QUEUE_SIZE"); size != "" {
		if s.queue, err = strconv.Atoi(size); err != nil || s.queue < 1 {
			return nil, fmt.Errorf("OTEL_BSP_MAX_QUEUE_SIZE: want a number from 1, got %q", size)
		}
	}
	return s, nil
}

func (s *settings) client() []otlptracegrpc.Option {
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(s.address)}
	if s.tls == nil {
		return append(options, otlptracegrpc.WithInsecure())
	}
	return append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(s.tls)))
}

func clientTLS(caFile string, exporting func(string) (string, string)) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if caFile != "" {
		if config.RootCAs, err = authorities.Pool(caFile); err != nil {
			return nil, &fileError{err}
		}
	} else if name, file := exporting("CERTIFICATE"); file != "" {
		if config.RootCAs, err = authorities.Pool(file); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	certName, cert := exporting("CLIENT_CERTIFICATE")
	keyName, key := exporting("CLIENT_KEY")
	switch {
	case cert == "" && key == "":
		return config, nil
	case cert == "" || key == "":
		return nil, fmt.Errorf("%s and %s: give both or none", certName, keyName)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certName, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// fileError is a ca_file that cannot be used.
type fileError struct{ err error }

func (e *fileError) Error() string { return "tracing.ca_file: " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// sampler is what OTEL_TRACES_SAMPLER names, where the configuration names no
// share. The SDK would go on with its default after a mistake.
func sampler(share *float64, get func(string) string) (sdktrace.Sampler, error) {
	if share != nil {
		return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(*share)), nil
	}
	name := strings.ToLower(get("OTEL_TRACES_SAMPLER"))
	root, basedOnParent := strings.CutPrefix(name, "parentbased_")
	var s sdktrace.Sampler
	switch root {
	case "":
		return sdktrace.ParentBased(sdktrace.AlwaysSample()), nil
	case "always_on":
		s = sdktrace.AlwaysSample()
	case "always_off":
		s = sdktrace.NeverSample()
	case "traceidratio":
		ratio := 1.0
		if arg := get("OTEL_TRACES_SAMPLER_ARG"); arg != "" {
			var err error
			if ratio, err = strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
				return nil, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG: want 0 to 1, got %q", arg)
			}
		}
		s = sdktrace.TraceIDRatioBased(ratio)
	default:
		return nil, errors.New("OTEL_TRACES_SAMPLER: want always_on, always_off or traceidratio, each with or without parentbased_, got " + strconv.Quote(name))
	}
	if basedOnParent {
		s = sdktrace.ParentBased(s)
	}
	return s, nil
}

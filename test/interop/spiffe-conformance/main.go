// Command spiffe-conformance asks a SPIFFE Workload API socket, and where given
// a bundle endpoint, for everything that the SPIFFE standards let a client see,
// and prints what holds. It knows no implementation: it links no SPIFFE library
// beyond the protocol itself and judges bytes.
//
//	spiffe-conformance --socket unix:///run/agent.sock [--denied-socket unix:///…]
//	    [--bundle-endpoint https://… --profile https_web|https_spiffe
//	     --endpoint-id spiffe://… --roots FILE] [--output json]
//
// The exit code is 1 if something that a standard demands (MUST) does not hold,
// 2 if nothing could be asked.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"
)

// Config says what to look at.
type Config struct {
	Socket, DeniedSocket string
	Audience             string
	Endpoint, Profile    string
	EndpointID, Roots    string
	Watch                time.Duration
	Timeout              time.Duration
	Output               string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c Config
	f := flag.NewFlagSet("spiffe-conformance", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&c.Socket, "socket", os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "Workload API of this process: unix:///path or tcp://IP:port (SPIFFE_ENDPOINT_SOCKET)")
	f.StringVar(&c.DeniedSocket, "denied-socket", "", "Workload API that has no identity for this process")
	f.StringVar(&c.Audience, "audience", "conformance", "audience of the JWT-SVIDs that are asked for")
	f.StringVar(&c.Endpoint, "bundle-endpoint", "", "URL of a bundle endpoint")
	f.StringVar(&c.Profile, "profile", "https_spiffe", "profile of the bundle endpoint: https_web or https_spiffe")
	f.StringVar(&c.EndpointID, "endpoint-id", "", "SPIFFE ID of the bundle endpoint, for https_spiffe")
	f.StringVar(&c.Roots, "roots", "", "file of authorities (PEM) that the endpoint's certificate is verified with; by default the system's for https_web, the Workload API's bundle for https_spiffe")
	f.DurationVar(&c.Watch, "watch", 0, "how long to follow the stream of X509-SVIDs, for what rotations show")
	f.DurationVar(&c.Timeout, "timeout", 30*time.Second, "limit of each request")
	f.StringVar(&c.Output, "output", "text", "text or json")
	if err := f.Parse(args); err != nil {
		return 2
	}
	if f.NArg() > 0 || c.Socket == "" && c.Endpoint == "" || c.Output != "text" && c.Output != "json" || c.Profile != "https_web" && c.Profile != "https_spiffe" {
		fmt.Fprintln(stderr, "spiffe-conformance: want --socket or --bundle-endpoint, --output text or json, --profile https_web or https_spiffe")
		return 2
	}
	r := NewReport()
	if c.Socket != "" {
		if err := checkWorkloadAPI(ctx, c, r); err != nil {
			fmt.Fprintln(stderr, "spiffe-conformance:", err)
			return 2
		}
	}
	if c.Endpoint != "" {
		checkEndpoint(ctx, c, r)
	}
	if err := r.Write(stdout, c.Output); err != nil {
		fmt.Fprintln(stderr, "spiffe-conformance:", err)
		return 2
	}
	if r.Failed() {
		return 1
	}
	return 0
}

// Write prints the table.
func (r *Report) Write(w io.Writer, output string) error {
	if output == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Checks []*Check `json:"checks"`
			Failed bool     `json:"failed"`
		}{r.Checks, r.Failed()})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "RESULT\tLEVEL\tCHECK\tSTANDARD\tWHAT\tFOUND")
	count := map[string]int{}
	for _, c := range r.Checks {
		count[c.Result]++
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Result, c.Level, c.ID, c.Section, c.Title, c.Found)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d pass, %d fail, %d not tested\n", count[Pass], count[Fail], count[NotTested])
	return err
}

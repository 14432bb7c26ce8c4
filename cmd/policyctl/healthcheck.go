package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy/policyv1"
)

// healthReport is the JSON form of a healthcheck.
type healthReport struct {
	Program string `json:"program"`
	Healthy bool   `json:"healthy"`
	// Status is what it said: SERVING, NOT_SERVING; empty if it said nothing.
	Status   string   `json:"status"`
	Problems []string `json:"problems"`
}

func newHealthcheckCmd(a *app) *cobra.Command {
	var fetch svidFetch
	cmd := &cobra.Command{
		Use:   "healthcheck [writd|agent]",
		Short: "Ask a control plane or an agent whether it serves",
		Long: `Ask writd, on its admin socket, or an agent, on the socket of its Workload API,
whether it serves. The exit code is 0 if it does; otherwise, also if nobody answers
in time, it is 1 and the reasons are said. Nothing is changed, and the process that
asks needs no identity.

writd serves while its issuer can sign, a shared database answers, its own SVID is
valid and what it does can be put on record; the agent once it knows its entries
and has their SVIDs, for as long as its own and any of theirs is valid.`,
		Example: `  policyctl healthcheck
  policyctl healthcheck agent --socket /run/writ-agent/agent.sock --timeout 2s

  # in a Dockerfile
  HEALTHCHECK CMD ["policyctl", "healthcheck", "--server", "/var/lib/writ/run/admin.sock"]`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"writd\tthe control plane", "agent\ta node agent, ours or SPIRE's"},
		RunE: func(cmd *cobra.Command, args []string) error {
			agent := len(args) == 1 && args[0] == "agent"
			if !agent && cmd.Flags().Changed("socket") {
				return errors.New("--socket is the agent's: say healthcheck agent; the control plane is named by --server")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), fetch.timeout)
			defer cancel()
			report := healthReport{Program: "writd", Problems: []string{}}
			if agent {
				report.Program = "agent"
				report.ask(ctx, func() (*grpc.ClientConn, error) { return dialWorkloadAPI(fetch.address(a)) })
			} else {
				a.patience = fetch.timeout
				report.ask(ctx, a.dial)
			}
			if err := a.emit(report, report.write); err != nil {
				return err
			}
			if !report.Healthy {
				return &exitError{code: 1}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&fetch.socket, "socket", "", "of an agent: its Workload API, as in svid fetch")
	cmd.Flags().DurationVar(&fetch.timeout, "timeout", 5*time.Second, "how long to wait for an answer")
	_ = cmd.MarkFlagFilename("socket")
	return cmd
}

func (r *healthReport) write(w io.Writer) error {
	if r.Healthy {
		_, err := fmt.Fprintf(w, "%s is healthy\n", r.Program)
		return err
	}
	_, err := fmt.Fprintf(w, "%s is not healthy: %s\n", r.Program, strings.Join(r.Problems, "; "))
	return err
}

// ask asks for the health, and where that is bad for the reasons.
func (r *healthReport) ask(ctx context.Context, dial func() (*grpc.ClientConn, error)) {
	conn, err := dial()
	if err != nil {
		r.Problems = []string{terminalSafe(err.Error())}
		return
	}
	defer conn.Close()
	resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	switch status.Code(err) {
	case codes.OK:
		r.Status = resp.GetStatus().String()
		r.Healthy = resp.GetStatus() == healthv1.HealthCheckResponse_SERVING
	case codes.DeadlineExceeded:
		r.Problems = []string{"it does not answer in time"}
	case codes.Unavailable:
		r.Problems = []string{"it does not answer: " + terminalSafe(status.Convert(err).Message())}
	case codes.Unimplemented:
		r.Problems = []string{"it does not serve grpc.health.v1"}
	default:
		r.Problems = []string{terminalSafe(status.Convert(err).Message())}
	}
	if err != nil || r.Healthy {
		return
	}
	if r.Problems = r.reasons(ctx, conn); len(r.Problems) == 0 {
		r.Problems = []string{"it says " + r.Status + " and not why; its log does"}
	}
}

// reasons are what grpc.health.v1 has no field for.
func (r *healthReport) reasons(ctx context.Context, conn *grpc.ClientConn) []string {
	if r.Program == "agent" {
		return []string{"it does not know its entries yet, or its own SVID or all those of workloads have expired: the node is not attested, or the issuer does not answer; its log says which"}
	}
	resp, err := policyv1.NewStatusClient(conn).Get(ctx, &policyv1.StatusRequest{})
	if err != nil {
		return nil // a spire-server has no such service
	}
	var list []string
	for _, c := range resp.GetComponents() {
		if c.GetKind() == "writd" {
			for _, p := range c.GetProblems() {
				list = append(list, terminalSafe(p))
			}
		}
	}
	return list
}

// dialWorkloadAPI connects to a Workload API, unix://path or tcp://host:port.
func dialWorkloadAPI(address string) (*grpc.ClientConn, error) {
	network, to := "unix", ""
	switch {
	case strings.HasPrefix(address, "tcp://"):
		network, to = "tcp", strings.TrimPrefix(address, "tcp://")
	case strings.HasPrefix(address, "unix:"):
		to = strings.TrimPrefix(strings.TrimPrefix(address, "unix:"), "//")
	}
	if to == "" {
		return nil, fmt.Errorf("%q is not the address of a Workload API: want unix:///path or tcp://IP:port", address)
	}
	// Dialled by hand, as the admin socket is.
	return grpc.NewClient("passthrough:///workload-api", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, to)
		}))
}

// Command writ-agent runs once per node: it attests the node to the issuer and
// workloads to itself, and serves them the SPIFFE Workload API.
package main

import (
	"os"

	"github.com/writ-dev/writ/internal/daemon"
)

func main() { os.Exit(daemon.Main(spec())) }

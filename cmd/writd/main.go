// Command writd is the control plane: it names workloads (issuer), checks and
// distributes policy (decision), and keeps the record (audit).
package main

import (
	"os"

	"github.com/writ-dev/writ/internal/daemon"
)

func main() { os.Exit(daemon.Main(spec())) }

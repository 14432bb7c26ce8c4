package main

import (
	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/proxy"
)

func sections() []section {
	return []section{
		{"writd", "The file of `writd --config`; each key is also a flag, but for the lists of sections.", "internal/writdconf", "Config", writdconf.Default(), []string{"internal/tracing"}},
		{"writ-agent", "The file of `writ-agent --config`; each key is also a flag, but for the sections.", "identity/agent", "Config", agent.Default(), []string{"internal/tracing", "identity/workload/sds"}},
		{"writ-sidecar", "The file of `writ-sidecar --config`.", "proxy", "Config", proxy.Default(), nil},
		{"mesh file", "The file of `policyctl up -f`. See [its page](../mesh-file.md).", "internal/mesh", "Mesh", mesh.Mesh{}, nil},
	}
}

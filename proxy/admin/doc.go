// Package admin is the sidecar's window for operators, on loopback only:
// /metrics for Prometheus, /healthz (the process serves), /readyz (requests
// would be decided; otherwise why not, as JSON).
package admin

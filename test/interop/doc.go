// Package interop runs Writ against software that others wrote: SPIRE, OPA,
// Envoy, nginx, h2spec, Docker, containerd, Kubernetes. It holds tests only; run.sh
// builds what they need and runs them, and they stay out of `go test ./...` by their
// build tag.
package interop

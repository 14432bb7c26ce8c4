// Package e2e runs the real programs as a user does: built binaries, separate
// processes, real sockets, real disks. It holds tests only.
package e2e

//go:build !unordered

package admit

// Ordered is false in a build for a benchmark alone, which begins everything at once.
const Ordered = true

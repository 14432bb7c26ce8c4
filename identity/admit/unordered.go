//go:build unordered

package admit

// Ordered tells that this build begins everything at once: what putting work in order
// is compared with. It is no build to run.
const Ordered = false

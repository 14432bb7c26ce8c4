//go:build race

package program

// raceEnabled: the race detector makes sync.Pool forget.
const raceEnabled = true

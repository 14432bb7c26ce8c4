//go:build race

package compile

// underRace says that tests are ten times as slow.
const underRace = true

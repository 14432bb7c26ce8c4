//go:build !race

package compile

const underRace = false

package audit

import "fmt"

// Count is a number and its noun: "1 entry", "2 entries".
func Count(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

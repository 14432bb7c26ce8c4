package audit

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// readClock asks the kernel, see adjtimex(2); it changes nothing.
func readClock() clock {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		return clock{}
	}
	c := clock{
		source:       "system",
		known:        true,
		synchronized: tx.Status&unix.STA_UNSYNC == 0,
		offset:       time.Duration(tx.Offset) * time.Microsecond,
		maxError:     time.Duration(tx.Maxerror) * time.Microsecond,
	}
	if tx.Status&unix.STA_NANO != 0 {
		c.offset = time.Duration(tx.Offset)
	}
	if b, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource"); err == nil {
		c.source = strings.TrimSpace(string(b))
	}
	return c
}

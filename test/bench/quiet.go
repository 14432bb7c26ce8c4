package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

const (
	// quietShare of all cores may be busy with something else.
	quietShare = 0.1
	// quietWait is how long a turn waits for that.
	quietWait = 10 * time.Second
)

// quiet waits until the machine does little else, and says so when it never
// does: what is measured then is the machine's other work.
func (b *bench) quiet(ctx context.Context) error {
	before, err := cpuTime()
	if err != nil {
		return err
	}
	for start := time.Now(); ; {
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		now, err := cpuTime()
		if err != nil {
			return err
		}
		busy := 1 - float64(now.idle-before.idle)/float64(max(1, now.total-before.total))
		if busy < quietShare {
			return nil
		}
		if time.Since(start) > quietWait {
			b.say("  the machine is %.0f %% busy with other things: do not trust what follows", 100*busy)
			return nil
		}
		before = now
	}
}

// ticks of all cores since boot.
type ticks struct{ idle, total int64 }

func cpuTime() (ticks, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return ticks{}, err
	}
	return parseCPU(data)
}

// parseCPU reads the first line of /proc/stat (proc_stat(5)): user, nice,
// system, idle, iowait and more. The guest times are in user and nice already.
func parseCPU(stat []byte) (ticks, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 6 || string(fields[0]) != "cpu" {
		return ticks{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var t ticks
	for i, f := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return ticks{}, fmt.Errorf("/proc/stat: %w", err)
		}
		t.total += n
		if i == 3 || i == 4 {
			t.idle += n
		}
	}
	return t, nil
}

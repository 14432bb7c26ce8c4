package compile

import (
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// Snapshot puts a compiled program in force, with topdown beside it for what
// the program does not answer. load gives the sources' form; it is called at
// once when the program needs topdown for anything a request is likely to ask,
// and otherwise when something is first asked. prog may be nil: all is asked.
func Snapshot(load func() (*opa.Program, error), prog *program.Program, cfg opa.SnapshotConfig) (*policy.Snapshot, error) {
	p, err := load()
	if err != nil {
		return nil, err
	}
	return p.Snapshot(cfg)
}

// Package systemd attests workloads that systemd runs: the kernel says in which
// unit a process is, and systemd what file that unit was read from.
//
// Selectors are SPIRE's: systemd:id:<unit>, systemd:fragment_path:<file>.
package systemd

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/godbus/dbus/v5"

	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// Type is the first part of every selector of this package.
const Type = "systemd"

const (
	manager       = "org.freedesktop.systemd1"
	managerObject = "/org/freedesktop/systemd1"
)

// Attestor asks systemd over the system bus.
type Attestor struct {
	proc, address string

	mu   sync.Mutex
	conn *dbus.Conn
}

// New returns an Attestor. address is of the bus, the system's if empty; proc is
// cgroup.Proc but in tests.
func New(address, proc string) *Attestor { return &Attestor{proc: proc, address: address} }

// Type implements attest.Workload.
func (*Attestor) Type() string { return Type }

// Kinds implements attest.Workload.
func (*Attestor) Kinds() []string { return []string{Type + ":id", Type + ":fragment_path"} }

// Attest implements attest.Workload.
func (a *Attestor) Attest(ctx context.Context, pid int) ([]string, error) {
	groups, err := cgroup.Of(a.proc, pid)
	if err != nil {
		return nil, err
	}
	unit, err := groups.Unit()
	if err != nil {
		return nil, err
	}
	id, file, err := a.ask(ctx, unit)
	if err != nil {
		return nil, fmt.Errorf("unit %s: %w", unit, err)
	}
	selectors := []string{Type + ":id:" + id}
	// What was made at run time (systemd-run, a session) has no file.
	if filepath.IsAbs(file) {
		selectors = append(selectors, Type+":fragment_path:"+file)
	}
	return selectors, nil
}

// ask returns the unit's own name, of which the one given may be an alias, and
// its file.
func (a *Attestor) ask(ctx context.Context, unit string) (id, file string, err error) {
	conn, err := a.connection(ctx)
	if err != nil {
		return "", "", fmt.Errorf("connect to the system bus: %w", err)
	}
	var path dbus.ObjectPath
	// A unit with a process is loaded: GetUnit loads nothing.
	if err := conn.Object(manager, managerObject).CallWithContext(ctx, manager+".Manager.GetUnit", 0, unit).Store(&path); err != nil {
		return "", "", fmt.Errorf("ask systemd: %w", err)
	}
	for _, property := range []struct {
		name string
		into *string
	}{{"Id", &id}, {"FragmentPath", &file}} {
		var value dbus.Variant
		call := conn.Object(manager, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, manager+".Unit", property.name)
		if err := call.Store(&value); err != nil {
			return "", "", fmt.Errorf("ask systemd for %s: %w", property.name, err)
		}
		text, ok := value.Value().(string)
		if !ok {
			return "", "", fmt.Errorf("systemd answers %s with %s", property.name, value.Signature())
		}
		*property.into = text
	}
	if id == "" {
		return "", "", fmt.Errorf("systemd gives it no name")
	}
	return id, file, nil
}

// connection returns the one there is, or a new one.
func (a *Attestor) connection(ctx context.Context) (*dbus.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil && a.conn.Connected() {
		return a.conn, nil
	}
	// The context of a connection ends it, and this one outlives the call. The
	// bus is on this machine: it answers or it is not there.
	open := func() (*dbus.Conn, error) { return dbus.ConnectSystemBus() }
	if a.address != "" {
		open = func() (*dbus.Conn, error) { return dbus.Connect(a.address) }
	}
	type opened struct {
		conn *dbus.Conn
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		conn, err := open()
		done <- opened{conn, err}
	}()
	select {
	case o := <-done:
		if o.err == nil {
			a.conn = o.conn
		}
		return o.conn, o.err
	case <-ctx.Done():
		go func() { // a bus that answers too late
			if o := <-done; o.err == nil {
				o.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

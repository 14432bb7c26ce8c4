package systemd

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/attest/attesttest"
	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// bus runs a D-Bus of its own.
func bus(t *testing.T) (address string) {
	t.Helper()
	path, err := exec.LookPath("dbus-daemon")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dbus-daemon is missing (Debian: dbus)")
		}
		t.Skip("dbus-daemon is missing (Debian: dbus)")
	}
	cmd := exec.Command(path, "--session", "--nofork", "--nopidfile", "--print-address", "--address=unix:tmpdir="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	address, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(address)
}

// fakeManager answers on the bus for systemd, which runs a machine and not a
// test.
type fakeManager map[string]dbus.ObjectPath

func (m fakeManager) GetUnit(name string) (dbus.ObjectPath, *dbus.Error) {
	if path, ok := m[name]; ok {
		return path, nil
	}
	return "", dbus.NewError(manager+".NoSuchUnit", []any{"Unit " + name + " not loaded."})
}

type fakeUnit map[string]any

func (u fakeUnit) Get(_, property string) (dbus.Variant, *dbus.Error) {
	return dbus.MakeVariant(u[property]), nil
}

func serve(t *testing.T, address string) {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	units := fakeManager{}
	for name, u := range map[string]fakeUnit{
		"nginx.service": {"Id": "nginx.service", "FragmentPath": "/lib/systemd/system/nginx.service"},
		"alias.service": {"Id": "real.service", "FragmentPath": "/etc/systemd/system/real.service"},
		"run-1.scope":   {"Id": "run-1.scope", "FragmentPath": ""},
		"odd.service":   {"Id": 7, "FragmentPath": ""},
	} {
		path := dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + strings.NewReplacer(".", "_", "-", "_").Replace(name))
		units[name] = path
		if err := conn.Export(u, path, "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Export(units, managerObject, manager+".Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(manager, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("name on the bus: %v, %v", reply, err)
	}
}

func TestAttest(t *testing.T) {
	address := bus(t)
	serve(t, address)
	for _, tc := range []struct {
		group string
		want  []string
		err   string
	}{
		{group: "/system.slice/nginx.service", want: []string{"systemd:id:nginx.service", "systemd:fragment_path:/lib/systemd/system/nginx.service"}},
		{group: "/system.slice/nginx.service/worker", want: []string{"systemd:id:nginx.service", "systemd:fragment_path:/lib/systemd/system/nginx.service"}},
		{group: "/system.slice/alias.service", want: []string{"systemd:id:real.service", "systemd:fragment_path:/etc/systemd/system/real.service"}},
		{group: "/system.slice/run-1.scope", want: []string{"systemd:id:run-1.scope"}},
		{group: "/system.slice/gone.service", err: "not loaded"},
		{group: "/system.slice/odd.service", err: "answers Id with"},
		{group: "/user.slice/user-1.slice/user@1.service/nginx.service", err: "user@1.service"},
	} {
		proc, pid := attesttest.Proc(t, tc.group)
		a := New(address, proc)
		for range 2 { // with a connection of its own, and with the one it has
			got, err := a.Attest(t.Context(), pid)
			if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, %v\n%s", tc.group, got, err, diff)
			}
		}
		a.conn.Close()
	}
}

func TestNoUnit(t *testing.T) {
	proc, pid := attesttest.Proc(t, "/")
	if _, err := New("unix:path=/nowhere", proc).Attest(t.Context(), pid); !errors.Is(err, cgroup.ErrNone) {
		t.Errorf("got %v, want ErrNone", err)
	}
	proc, pid = attesttest.Proc(t, "/system.slice/nginx.service")
	if _, err := New("unix:path=/nowhere", proc).Attest(t.Context(), pid); err == nil || errors.Is(err, cgroup.ErrNone) {
		t.Errorf("without a bus: %v", err)
	}
}

// A bus on which nobody is systemd gives an answer or the time runs out.
func TestNobodyAnswers(t *testing.T) {
	proc, pid := attesttest.Proc(t, "/system.slice/nginx.service")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if got, err := New(bus(t), proc).Attest(ctx, pid); got != nil || err == nil {
		t.Errorf("got %v, %v", got, err)
	}
}

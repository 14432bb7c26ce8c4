//go:build linux

// Command workload is what runs in the containers of the interop tests: the only
// file of their image. It calls the socket that it is given and answers each line of
// what it is told there with a line of JSON:
//
//	fetch                   asks the Workload API on a new connection
//	pretend GROUP           makes a control group below its own, of this name, moves
//	                        into it, and then does as fetch
//
// The socket of the Workload API is in SPIFFE_ENDPOINT_SOCKET. Given the word pause in
// place of a socket it does nothing until it is told to end: what keeps a pod together.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// answer is what the workload got.
type answer struct {
	// IDs are the SPIFFE IDs of its X509-SVIDs.
	IDs []string `json:"ids,omitempty"`
	// Groups is its /proc/self/cgroup.
	Groups string `json:"groups"`
	Error  string `json:"error,omitempty"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: workload SOCKET|pause")
		os.Exit(2)
	}
	if os.Args[1] == "pause" {
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
		return
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func serve(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var a answer
		var err error
		if group, ok := strings.CutPrefix(lines.Text(), "pretend "); ok {
			err = pretend(group)
		}
		if err == nil {
			a.IDs, err = fetch()
		}
		if err != nil {
			a.Error = err.Error()
		}
		groups, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return err
		}
		a.Groups = string(groups)
		if err := json.NewEncoder(conn).Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

func fetch() ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	svids, err := workloadapi.FetchX509SVIDs(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, s := range svids {
		ids = append(ids, s.ID.String())
	}
	fmt.Println(ids)
	return ids, nil
}

// pretend does what a container with the right to mount can: it names control
// groups in the part of each tree that is its own. Where its engine did not give it
// a namespace of control groups it makes one, since all of the tree is not what such
// a container should see.
func pretend(group string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("namespace of control groups: %w", err)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	moved := 0
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			return fmt.Errorf("control group %q", line)
		}
		kind, options := "cgroup", fields[1]
		switch {
		case options == "":
			kind = "cgroup2"
		case strings.HasPrefix(options, "name="):
			options = "none," + options
		}
		at := filepath.Join("/cgroup", fields[0])
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("none", at, kind, 0, options); err != nil {
			return fmt.Errorf("mount %s %s: %w", kind, options, err)
		}
		dir := at
		for name := range strings.SplitSeq(group, "/") {
			parent := dir
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
				return err
			}
			if _, err := os.Stat(filepath.Join(dir, "cpuset.mems")); err != nil || kind != "cgroup" {
				continue
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				data, err := os.ReadFile(filepath.Join(parent, file))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
					return err
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("move into %s: %w", dir, err)
		}
		moved++
	}
	if moved == 0 {
		return errors.New("no control group to pretend in")
	}
	return nil
}

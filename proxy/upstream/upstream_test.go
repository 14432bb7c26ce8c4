package upstream

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestOwner(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("no %s here: %v", address, err)
			continue
		}
		defer ln.Close()
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if uid, err := owner(server); err != nil || uid != os.Getuid() {
			t.Errorf("%s: owner %d %v, want %d", address, uid, err, os.Getuid())
		}
		// The slow way says the same.
		a, b := netip.MustParseAddrPort(server.RemoteAddr().String()), netip.MustParseAddrPort(server.LocalAddr().String())
		table := "/proc/self/net/tcp"
		if a.Addr().Is6() {
			table += "6"
		}
		f, err := os.Open(table)
		if err != nil {
			t.Fatal(err)
		}
		uid, err := scanTable(f, a, b)
		f.Close()
		if err != nil || uid != os.Getuid() {
			t.Errorf("%s: owner by %s %d %v", address, table, uid, err)
		}
		// A socket that was closed belongs to nobody, and not to root.
		client.Close()
		if uid, err := owner(server); !errors.Is(err, errNoSocket) {
			t.Errorf("%s: owner of a closed socket %d %v", address, uid, err)
		}
	}
}

const sampleTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1001 1 0 100 0 0 10 0
   1: 0100007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1234        0 1002 1 0 20 4 30 10 -1
   2: 0100007F:C002 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   3: garbage
`

func TestScanTable(t *testing.T) {
	server := netip.MustParseAddrPort("127.0.0.1:8080")
	for client, want := range map[string]int{"127.0.0.1:49153": 1234, "127.0.0.1:49154": -1, "127.0.0.1:49155": -1} {
		uid, err := scanTable(strings.NewReader(sampleTable), netip.MustParseAddrPort(client), server)
		if uid != want || (err == nil) != (want >= 0) {
			t.Errorf("%s: %d %v, want %d", client, uid, err, want)
		}
	}
}

func FuzzScanTable(f *testing.F) {
	f.Add(sampleTable)
	f.Add("1: 00000000000000000000000001000000:C001 00000000000000000000000001000000:1F90 01 a b c 1 d 5")
	f.Fuzz(func(t *testing.T, table string) {
		client, server := netip.MustParseAddrPort("127.0.0.1:49153"), netip.MustParseAddrPort("127.0.0.1:8080")
		uid, err := scanTable(strings.NewReader(table), client, server)
		if (uid < 0) != (err != nil) {
			t.Fatalf("uid %d, error %v", uid, err)
		}
	})
}

func FuzzParseDiag(f *testing.F) {
	client, server := netip.MustParseAddrPort("127.0.0.1:49153"), netip.MustParseAddrPort("127.0.0.1:8080")
	f.Add(diagRequest(client, server))
	f.Add(make([]byte, sizeofHeader+sizeofMessage))
	f.Fuzz(func(t *testing.T, answer []byte) {
		uid, err := parseDiag(answer, client, server)
		if (uid < 0) != (err != nil) {
			t.Fatalf("uid %d, error %v", uid, err)
		}
	})
}

func TestListenRefusesWhatIsNotLocal(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "192.0.2.1:0", "localhost:0", "unix:relative", "", ":0"} {
		if ln, err := Listen(ListenConfig{Address: address}); err == nil {
			ln.Close()
			t.Errorf("%q was opened", address)
		}
	}
}

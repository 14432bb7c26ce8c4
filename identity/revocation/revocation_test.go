package revocation_test

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
	"google.golang.org/protobuf/proto"
)

var (
	web    = spiffeid.RequireFromString("spiffe://example.org/svc/web")
	orders = spiffeid.RequireFromString("spiffe://example.org/svc/orders")
	node1  = spiffeid.RequireFromString("spiffe://example.org/spire/agent/join_token/1")
	node2  = spiffeid.RequireFromString("spiffe://example.org/spire/agent/join_token/2")
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

const backdate = 10 * time.Second

func serial(through spiffeid.ID) *big.Int {
	var random [20]byte
	_, _ = rand.Read(random[:])
	return revocation.MakeSerial(through, random)
}

// leaf is an X509-SVID issued at a time.
func leaf(serial *big.Int, issued time.Time) *x509.Certificate {
	return &x509.Certificate{SerialNumber: serial, NotBefore: issued.Add(-backdate)}
}

func byID(kind revocation.Kind, id spiffeid.ID, before time.Time, number uint64) *revocation.Revocation {
	return &revocation.Revocation{Kind: kind, Subject: id.String(), Before: before, Backdate: backdate, Expires: noon.Add(time.Hour), Number: number}
}

func bySerial(serial *big.Int, number uint64) *revocation.Revocation {
	return &revocation.Revocation{Kind: revocation.Serial, Subject: serial.String(), Backdate: backdate, Expires: noon.Add(time.Hour), Number: number}
}

func set(t *testing.T, list ...*revocation.Revocation) *revocation.Set {
	t.Helper()
	var s revocation.Set
	if _, err := s.Merge(list, noon); err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestWhatIsRevoked(t *testing.T) {
	one := serial(node1)
	list, _ := set(t, bySerial(one, 1), byID(revocation.SPIFFEID, orders, noon, 2), byID(revocation.Agent, node2, noon, 3)).Now()
	for _, c := range []struct {
		name    string
		id      spiffeid.ID
		serial  *big.Int
		issued  time.Time
		revoked bool
	}{
		{"another serial", web, serial(node1), noon.Add(-time.Minute), false},
		{"the serial", web, one, noon.Add(-time.Minute), true},
		{"the serial, whenever it was issued", web, one, noon.Add(time.Minute), true},
		{"the ID, before", orders, serial(node1), noon.Add(-time.Second), true},
		{"the ID, after", orders, serial(node1), noon, false},
		{"the agent, before", web, serial(node2), noon.Add(-time.Second), true},
		{"the agent, after", web, serial(node2), noon, false},
		{"minted, through no agent", web, serial(spiffeid.ID{}), noon.Add(-time.Second), false},
		{"a serial number of another kind of issuer", web, big.NewInt(7), noon.Add(-time.Second), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := list.X509(leaf(c.serial, c.issued), c.id); (got != nil) != c.revoked {
				t.Errorf("X509-SVID: %v", got)
			}
			if got := list.JWT(c.id, c.serial.String(), c.issued); (got != nil) != c.revoked {
				t.Errorf("JWT-SVID: %v", got)
			}
		})
	}
	if list.JWT(orders, "", time.Time{}) == nil {
		t.Error("a token without iat is as old as can be")
	}
	if got := list.Cutoff(orders, node1); !got.Equal(noon) {
		t.Errorf("cutoff %v", got)
	}
	if got := list.Cutoff(web, node1); !got.IsZero() {
		t.Errorf("cutoff %v where nothing is revoked", got)
	}
}

// In whatever order and how often lists are merged, the outcome is the same, and
// nothing is ever taken back.
func TestMergeNeverRunsBackwards(t *testing.T) {
	old, newer := byID(revocation.SPIFFEID, web, noon, 1), byID(revocation.SPIFFEID, web, noon.Add(time.Minute), 5)
	other := bySerial(big.NewInt(99), 3)
	want, _ := set(t, old, newer, other).Now()
	for _, order := range [][]*revocation.Revocation{{newer, old, other}, {other, newer, newer, old}, {old, other, old, newer}} {
		var s revocation.Set
		for _, r := range order {
			if _, err := s.Merge([]*revocation.Revocation{r}, noon); err != nil {
				t.Fatal(err)
			}
		}
		got, changed := s.Now()
		if diff := cmp.Diff(want.All(), got.All()); diff != "" {
			t.Errorf("merged in another order: %s", diff)
		}
		if again, err := s.Merge(order, noon); again || err != nil {
			t.Errorf("what is known already changed the list (%v)", err)
		}
		select {
		case <-changed:
			t.Error("and it told everybody")
		default:
		}
	}
	// An older issuer's list, with lower numbers and less in it.
	s := set(t, newer, other)
	if changed, _ := s.Merge([]*revocation.Revocation{old}, noon); changed {
		t.Error("an older state changed the list")
	}
	if got, _ := s.Now(); got.Len() != 2 || !got.Cutoff(web, spiffeid.ID{}).Equal(newer.Before) {
		t.Errorf("%v", got.All())
	}
}

func TestExpiredAreForgotten(t *testing.T) {
	s := set(t, byID(revocation.SPIFFEID, web, noon, 1))
	if changed, err := s.Merge(nil, noon.Add(59*time.Minute)); changed || err != nil {
		t.Error("forgotten too early", err)
	}
	if changed, err := s.Merge(nil, noon.Add(time.Hour)); !changed || err != nil {
		t.Error("not forgotten", err)
	}
	if list, _ := s.Now(); list.Len() != 0 || list.Number() != 1 {
		t.Errorf("%d in the list, number %d", list.Len(), list.Number())
	}
}

func TestSince(t *testing.T) {
	s := set(t, bySerial(big.NewInt(1), 3), bySerial(big.NewInt(2), 7))
	list, _ := s.Now()
	for number, want := range map[uint64]int{0: 2, 2: 2, 3: 1, 6: 1, 7: 0, 9: 0} {
		if got := len(list.Since(number)); got != want {
			t.Errorf("since %d: %d, want %d", number, got, want)
		}
	}
}

func TestParseSerial(t *testing.T) {
	for text, want := range map[string]string{
		"42": "42", "0x2a": "42", "0X2A": "42", "2a": "42", "00:2A": "42", "0": "", "": "", "-1": "", "+1": "", "1_0": "", "x": "", "0x": "", "4 2": "",
		"0xffffffffffffffffffffffffffffffffffffffff": "1461501637330902918203684832716283019655932542975", "0x1ffffffffffffffffffffffffffffffffffffffff": "",
	} {
		got, err := revocation.ParseSerial(text)
		if want == "" {
			if err == nil {
				t.Errorf("%q: %v", text, got)
			}
		} else if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestFile(t *testing.T) {
	s := set(t, bySerial(serial(node1), 1), byID(revocation.Agent, node1, noon, 2), byID(revocation.SPIFFEID, web, noon, 3))
	list, _ := s.Now()
	data, err := list.Marshal(noon)
	if err != nil {
		t.Fatal(err)
	}
	var back revocation.Set
	if err := back.Load(data, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got, _ := back.Now()
	if diff := cmp.Diff(list.All(), got.All(), cmp.Comparer(func(a, b time.Time) bool { return a.Unix() == b.Unix() || a.IsZero() || b.IsZero() })); diff != "" {
		t.Error(diff)
	}
	if !back.CurrentAt().Equal(noon) {
		t.Errorf("current at %v", back.CurrentAt())
	}
	// The clock that wrote it was ahead: it proves nothing about now.
	var ahead revocation.Set
	if err := ahead.Load(data, noon.Add(-time.Minute)); err != nil || !ahead.CurrentAt().IsZero() {
		t.Errorf("%v, current at %v", err, ahead.CurrentAt())
	}
}

func TestUpdates(t *testing.T) {
	var many []*revocation.Revocation
	for n := range 2500 {
		many = append(many, bySerial(big.NewInt(int64(n+1)), uint64(n+1)))
	}
	got := revocation.Updates(many, 2500, noon)
	if len(got) != 3 || got[0].Complete || !got[2].Complete {
		t.Fatalf("%d updates", len(got))
	}
	var s revocation.Set
	for _, u := range got {
		if _, err := s.MergeUpdate(u, noon); err != nil {
			t.Fatal(err)
		}
	}
	if list, _ := s.Now(); list.Len() != len(many) {
		t.Errorf("%d arrived", list.Len())
	}
	if got := revocation.Updates(nil, 0, noon); len(got) != 1 || !got[0].Complete {
		t.Error("nothing new must be said, too")
	}
}

// One entry that makes no sense does not keep the others out.
func TestInvalidAreLeftOut(t *testing.T) {
	good := revocation.ToProto(byID(revocation.SPIFFEID, web, noon, 1), false)
	for name, bad := range map[string]*revocationv1.Revocation{
		"nothing":         {ExpiresAt: noon.Unix()},
		"no serial":       {Subject: &revocationv1.Revocation_Serial{Serial: "x"}, ExpiresAt: noon.Add(time.Hour).Unix()},
		"no ID":           {Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: "x"}, IssuedBefore: 1, ExpiresAt: noon.Add(time.Hour).Unix()},
		"no time":         {Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: orders.String()}, ExpiresAt: noon.Add(time.Hour).Unix()},
		"never expires":   {Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: orders.String()}, IssuedBefore: 1},
		"beyond all time": {Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: orders.String()}, IssuedBefore: 1 << 62, ExpiresAt: noon.Add(time.Hour).Unix()},
		"backdate":        {Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: orders.String()}, IssuedBefore: 1, ExpiresAt: noon.Add(time.Hour).Unix(), BackdateSeconds: 1 << 40},
	} {
		var s revocation.Set
		changed, err := s.MergeUpdate(&revocationv1.Update{Revocations: []*revocationv1.Revocation{bad, good}}, noon)
		if list, _ := s.Now(); err == nil || !changed || list.Len() != 1 {
			t.Errorf("%s: %v, %v, %d in the list", name, changed, err, list.Len())
		}
	}
}

// Whatever is in an update, what was revoked before stays revoked.
func FuzzUpdate(f *testing.F) {
	for _, u := range revocation.Updates([]*revocation.Revocation{bySerial(big.NewInt(5), 1), byID(revocation.Agent, node1, noon, 2), byID(revocation.SPIFFEID, web, noon, 9)}, 9, noon) {
		data, _ := proto.Marshal(u)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var u revocationv1.Update
		if proto.Unmarshal(data, &u) != nil {
			return
		}
		s := set(t, bySerial(big.NewInt(5), 1), byID(revocation.Agent, node1, noon, 2), byID(revocation.SPIFFEID, web, noon, 3))
		_, _ = s.MergeUpdate(&u, noon)
		list, _ := s.Now()
		old := noon.Add(-time.Second)
		if list.X509(leaf(big.NewInt(5), old), orders) == nil || list.X509(leaf(serial(node1), old), orders) == nil || list.X509(leaf(big.NewInt(6), old), web) == nil {
			t.Errorf("taken back by %v", &u)
		}
		data, err := list.Marshal(noon)
		if err != nil {
			t.Fatal(err)
		}
		var back revocation.Set
		if err := back.Load(data, noon); err != nil {
			t.Errorf("what was taken cannot be kept: %v", err)
		}
	})
}

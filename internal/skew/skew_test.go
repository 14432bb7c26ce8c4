package skew_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/skew"
)

func TestOf(t *testing.T) {
	noon := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{NotBefore: noon, NotAfter: noon.Add(time.Hour)}
	for _, tc := range []struct {
		now  time.Time
		want []string // nil: nothing is wrong
	}{
		{noon, nil},
		{noon.Add(time.Hour), nil},
		{noon.Add(-2 * time.Hour), []string{"not valid before 2030-01-01T12:00:00Z", "clock says 2030-01-01T10:00:00Z", "by 2h0m0s or more"}},
		{noon.Add(-time.Millisecond), []string{"by 1s or more"}},
		{noon.Add(3 * time.Hour), []string{"ended at 2030-01-01T13:00:00Z", "clock says 2030-01-01T15:00:00Z", "by 2h0m0s or more"}},
	} {
		e := skew.In([]*x509.Certificate{cert, cert}, tc.now)
		if (e == nil) != (tc.want == nil) {
			t.Errorf("%v: %v", tc.now, e)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(e.Error(), want) {
				t.Errorf("%v: %q lacks %q", tc.now, e, want)
			}
		}
	}
}
